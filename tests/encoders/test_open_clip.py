"""The towers of an open_clip model against open_clip's own calls, and where models may come from."""

import json
import pickle
import shutil

import numpy as np
import pytest
import torch

from fedray.config import validated
from fedray.encoders import fingerprint, open_clip
from fedray.encoders._images import decode
from fedray.encoders._torchvision import mend_torchvision
from fedray.errors import (
    MissingKeyError,
    MissingPathError,
    OutOfRangeError,
    UnknownNameError,
    UnsupportedError,
    WeightsError,
)
from tests.encoders import models

mend_torchvision()
import huggingface_hub  # noqa: E402
import open_clip as library  # noqa: E402

PLENTY = 1_000_000


@pytest.fixture(scope="module")
def folder():
    return models.open_clip_folder()


@pytest.fixture
def own(folder, tmp_path):
    """The folder of an architecture of our own, `tiny`, and a file of weights for it."""
    body = json.loads((folder / "open_clip_config.json").read_text())
    (tmp_path / "archs").mkdir()
    (tmp_path / "archs" / "fedray-tiny.json").write_text(json.dumps(body["model_cfg"]))
    shutil.copy(folder / "open_clip_model.safetensors", tmp_path / "w.safetensors")
    return {"model": "fedray-tiny", "model_configs": str(tmp_path / "archs")}, tmp_path / "w.safetensors"


def local(folder, **settings):
    return open_clip.Config(model=f"local-dir:{folder}", **{"input": "image", **settings})


def rows(config, raws):
    encoder = open_clip.make(config, "cpu", PLENTY)
    return encoder.embed([encoder.prepare(raw) for raw in raws])


def theirs(folder):
    return library.create_model_from_pretrained(f"local-dir:{folder}")


@pytest.mark.parametrize("normalize", [True, False])
def test_images_equal_open_clips_own(folder, normalize):
    raws = models.pictures(5)
    model, preprocess = theirs(folder)
    batch = torch.stack([preprocess(decode(raw, PLENTY)) for raw in raws])
    with torch.no_grad():
        expected = model.eval().encode_image(batch, normalize=normalize).numpy()
    found = rows(local(folder, normalize=normalize), raws)
    assert np.abs(found - expected).max() < 1e-5
    assert found.dtype == np.float32


@pytest.mark.parametrize("normalize", [True, False])
def test_texts_equal_open_clips_own(folder, normalize):
    raws = [*models.texts(4), "A Caf\u00e9 &amp; \u661f", "word " * 50]
    model, _ = theirs(folder)
    tokens = library.get_tokenizer(f"local-dir:{folder}")(raws)
    with torch.no_grad():
        expected = model.eval().encode_text(tokens, normalize=normalize).numpy()
    assert np.abs(rows(local(folder, input="text", normalize=normalize), raws) - expected).max() < 1e-5


def test_an_architecture_with_a_file_of_weights(folder, own, tmp_path):
    settings, safetensors = own
    pt = tmp_path / "w.pt"
    torch.save({"state_dict": theirs(folder)[0].state_dict()}, pt)
    expected = rows(local(folder), models.pictures(3))
    for file in (safetensors, pt):
        config = open_clip.Config(**settings, pretrained=str(file), input="image")
        assert np.array_equal(rows(config, models.pictures(3)), expected)
    said = open_clip.describe(config)
    assert said["model"]["name"] == "fedray-tiny"
    assert said["preprocessing"] == {"size": 32, "defaults": f"open_clip {library.__version__}"}


def test_a_tag_is_its_cached_file(folder, own, monkeypatch):
    settings, file = own
    entry = {"file": str(file), "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bilinear"}
    monkeypatch.setitem(library.pretrained._PRETRAINED, "fedray-tiny", {"ours": {**entry, "resize_mode": "squash"}})
    config = open_clip.Config(**settings, pretrained="ours", input="image")
    said = open_clip.describe(config)
    assert said["weights"] == open_clip.digest(file)
    assert said["preprocessing"]["resize_mode"] == "squash"
    assert json.loads(json.dumps(said)) == said
    assert said["preprocessing"]["mean"] == [0.5, 0.5, 0.5]
    assert not np.allclose(rows(config, models.pictures(2)), rows(local(folder), models.pictures(2)), atol=1e-3)
    with pytest.raises(UnknownNameError, match="Did you mean 'ours'"):
        open_clip.describe(open_clip.Config(**settings, pretrained="ourz", input="image"))


def hub(monkeypatch, answers):
    """A hub that answers each question in turn, with a folder or an error; what was asked of it."""
    asked = []

    def snapshot_download(name, *, allow_patterns, ignore_patterns, local_files_only):
        asked.append((name, local_files_only, *allow_patterns))
        found = answers[len(asked) - 1]
        if isinstance(found, Exception):
            raise found
        return str(found)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def test_a_tag_is_downloaded_unless_it_is_in_the_cache(folder, own, monkeypatch, tmp_path):
    settings, _ = own
    entries = {"ours": {"hf_hub": "fedray/tiny/"}, "named": {"hf_hub": "fedray/tiny/open_clip_model.bin"}}
    monkeypatch.setitem(library.pretrained._PRETRAINED, "fedray-tiny", entries)
    monkeypatch.setattr(library, "download_pretrained", lambda _: pytest.fail("open_clip was asked to download"))
    configs = [open_clip.Config(**settings, pretrained=tag, input="image") for tag in entries]
    expected = rows(local(folder), models.pictures(2))
    for config in configs:
        asked = hub(monkeypatch, [folder, folder])
        assert open_clip.describe(config)["weights"] == open_clip.digest(folder / "open_clip_model.safetensors")
        assert np.array_equal(rows(config, models.pictures(2)), expected)
        assert {cached for _, cached, *_ in asked} == {True}
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "open_clip_pytorch_model.bin").write_bytes(b"x")
    asked = hub(monkeypatch, [FileNotFoundError("nothing cached"), tmp_path, tmp_path / "bin"])
    open_clip.describe(configs[0])
    best, fallback = "open_clip_model.safetensors", "open_clip_pytorch_model.bin"
    assert asked == [
        ("fedray/tiny", True, best, fallback),
        ("fedray/tiny", False, best),
        ("fedray/tiny", False, best, fallback),
    ]


def test_a_tag_out_of_reach(monkeypatch):
    config = open_clip.Config(model="ViT-B-32", pretrained="laion2b_s34b_b79k", input="image")
    for call in (open_clip.describe, lambda c: open_clip.make(c, "cpu", PLENTY)):
        hub(monkeypatch, [FileNotFoundError("nothing cached"), ConnectionError("no network here")])
        with pytest.raises(WeightsError, match=r"no network here.*download it elsewhere"):
            call(config)


def test_a_tag_of_the_other_activation():
    """open_clip would only warn, and the numbers would be wrong."""
    for model, tag, other in (("ViT-B-32", "openai", "ViT-B-32-quickgelu"), ("RN50", "cc12m", "RN50-quickgelu")):
        with pytest.raises(UnsupportedError, match=f"Set model: {other}"):
            open_clip.describe(open_clip.Config(model=model, pretrained=tag, input="image"))


def test_the_place_is_not_described_and_all_else_is(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "elsewhere")
    (copy / "README.md").write_text("a card")
    first = open_clip.describe(local(folder))
    assert open_clip.describe(local(copy)) == first
    others = [open_clip.describe(local(folder, input="text")), open_clip.describe(local(folder, normalize=False))]
    weights = copy / "open_clip_model.safetensors"
    body = bytearray(weights.read_bytes())
    body[-1] ^= 1
    weights.write_bytes(body)
    others.append(open_clip.describe(local(copy)))
    config = json.loads((copy / "open_clip_config.json").read_text())
    config["preprocess_cfg"]["interpolation"] = "bilinear"
    (copy / "open_clip_config.json").write_text(json.dumps(config))
    others.append(open_clip.describe(local(copy)))
    assert len({fingerprint(d) for d in [first, *others]}) == 5
    assert others[-1]["preprocessing"]["interpolation"] == "bilinear"


def test_random_weights_are_never_used(folder, tmp_path):
    with pytest.raises(MissingKeyError, match="pretrained"):
        open_clip.Config(model="ViT-B-32", input="image")
    (tmp_path / "open_clip_config.json").write_text((folder / "open_clip_config.json").read_text())
    for call in (open_clip.describe, lambda c: open_clip.make(c, "cpu", PLENTY)):
        with pytest.raises(WeightsError, match="holds no weights"):
            call(local(tmp_path))


def test_one_place_for_weights(folder):
    with pytest.raises(UnsupportedError, match="beside"):
        local(folder, pretrained="openai")


def test_names_that_are_not_there(own, tmp_path):
    settings, file = own
    with pytest.raises(UnknownNameError, match="Did you mean 'ViT-B-32'"):
        open_clip.describe(open_clip.Config(model="ViT-B-3", pretrained=str(file), input="image"))
    with pytest.raises(MissingPathError, match=r"pretrained .*nowhere\.pt"):
        open_clip.describe(open_clip.Config(model="ViT-B-32", pretrained="nowhere.pt", input="image"))
    with pytest.raises(MissingPathError, match="model_configs"):
        open_clip.describe(open_clip.Config(model="x", model_configs="nowhere", pretrained="a.pt", input="image"))
    with pytest.raises(MissingPathError, match="nowhere"):
        open_clip.describe(local("nowhere"))
    with pytest.raises(WeightsError, match=r"open_clip_config\.json is not there"):
        open_clip.describe(local(tmp_path))
    (tmp_path / "open_clip_config.json").write_text("{")
    with pytest.raises(WeightsError, match=r"open_clip_config\.json"):
        open_clip.describe(local(tmp_path))
    for body in ("[]", "{}", '{"model_cfg": 3}'):
        (tmp_path / "open_clip_config.json").write_text(body)
        with pytest.raises(WeightsError, match=r"open_clip_config\.json (has no|holds list)"):
            open_clip.describe(local(tmp_path))
    with pytest.raises(MissingKeyError, match="input"):
        open_clip.describe(open_clip.Config(**settings, pretrained=str(file)))
    with pytest.raises(OutOfRangeError):
        validated(open_clip.Config, {"model": ""})


def test_an_architecture_of_open_clips_own_cannot_be_redefined(own, tmp_path):
    settings, file = own
    (tmp_path / "archs" / "ViT-B-32.json").write_text((tmp_path / "archs" / "fedray-tiny.json").read_text())
    with pytest.raises(UnsupportedError, match=r"ViT-B-32\.json"):
        open_clip.describe(open_clip.Config(**settings, pretrained=str(file), input="image"))


class Evil:
    """What a pickle can do to whoever loads it."""

    def __reduce__(self):
        return print, ("this must not be run",)


def test_weights_that_do_not_fit(own, tmp_path, capsys):
    settings, _ = own
    files = {
        name: tmp_path / name for name in ("shape.pt", "junk.safetensors", "junk.pt", "evil.pt", "empty.pt", "none.pt")
    }
    torch.save({"visual.proj": torch.zeros(2, 2)}, files["shape.pt"])
    files["junk.safetensors"].write_bytes(b"\xff" * 100)
    files["junk.pt"].write_bytes(b"\xff" * 100)
    files["evil.pt"].write_bytes(pickle.dumps({"visual.proj": Evil()}, protocol=2))
    torch.save({}, files["none.pt"])
    files["empty.pt"].write_bytes(b"")
    for file in files.values():
        config = open_clip.Config(**settings, pretrained=str(file), input="image")
        with pytest.raises(WeightsError, match="open_clip cannot load it"):
            open_clip.make(config, "cpu", PLENTY)
    assert "must not" not in capsys.readouterr().out


def test_half_precision_is_another_encoder_and_runs_on_a_gpu_alone():
    body = {"name": "open_clip", "input": "image", "model": f"local-dir:{models.open_clip_folder()}"}
    whole, half = (validated(open_clip.Config, {**body, "half": h}) for h in (False, True))
    assert fingerprint(open_clip.describe(whole)) != fingerprint(open_clip.describe(half))
    with pytest.raises(UnsupportedError, match="without a GPU"):
        open_clip.make(half, "cpu", PLENTY)
