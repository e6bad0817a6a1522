"""Digests of weights, and the small model that the benches use."""

import hashlib

import pytest
import torch

from fedray.encoders import _torchvision, open_clip
from fedray.encoders._weights import digest
from fedray.errors import MissingPathError
from tests.bench import small_clip
from tests.encoders.models import TINY_CLIP


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "m" / "1_Pooling").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "1_Pooling/config.json"):
        (tmp_path / "m" / name).write_text(name)
    return tmp_path / "m"


def test_a_file_is_its_sha256(folder):
    assert digest(folder / "config.json") == hashlib.sha256(b"config.json").hexdigest()


def test_of_a_folder_names_and_contents_count(folder):
    seen = {digest(folder)}
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    seen.add(digest(folder))
    (folder / "1_Pooling" / "config.json").write_text("other")
    seen.add(digest(folder))
    (folder / "vocab.txt").write_text("")
    seen.add(digest(folder))
    assert len(seen) == 4
    before = digest(folder)
    (folder / ".cache").mkdir()
    for name in (".gitattributes", ".cache/lock", "README.md", "LICENSE"):
        (folder / name).write_text("x")
    assert digest(folder) == before


def test_only_some_files(folder):
    before = digest(folder, ("*.json", "*.safetensors"))
    (folder / "1_Pooling" / "config.json").write_text("other")
    (folder / "model.onnx").write_text("other")
    assert digest(folder, ("*.json", "*.safetensors")) == before
    (folder / "config.json").write_text("other")
    assert digest(folder, ("*.json", "*.safetensors")) != before


def test_no_such_path(folder):
    with pytest.raises(MissingPathError, match="nowhere"):
        digest(folder / "nowhere")


def test_a_model_from_a_seed(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    folders = [small_clip.write(tmp_path / str(i), TINY_CLIP, seed) for i, seed in enumerate((0, 0, 1))]
    assert torch.rand(1) == expected
    digests = [digest(f) for f in folders]
    assert digests[0] == digests[1] != digests[2]


def test_the_benches_model_is_one_of_open_clips(tmp_path, capsys):
    assert small_clip.main([]) == 2
    assert small_clip.main([str(tmp_path)]) == 0
    assert "untrained" in capsys.readouterr().out
    config = open_clip.Config(model=f"local-dir:{tmp_path}", input="image")
    assert open_clip.make(config, "cpu", 1).dim == 64


def test_torchvision_is_mended_once():
    _torchvision.mend_torchvision()
    import torchvision.transforms  # noqa: F401

    kept = list(_torchvision._kept)
    _torchvision.mend_torchvision()
    assert _torchvision._kept == kept
    assert torch.ops.torchvision.nms is not None


def test_a_library_that_loads_is_not_declared_again(tmp_path, monkeypatch):
    (tmp_path / "_C.so").touch()
    loaded = []
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    assert _torchvision._loads(tmp_path)
    assert loaded == [str(tmp_path / "_C.so")]

    def refused(_):
        raise OSError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(torch.ops, "load_library", refused)
    assert not _torchvision._loads(tmp_path)
