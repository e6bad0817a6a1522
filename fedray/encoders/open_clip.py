"""The image or the text tower of an open_clip model.

    image: {name: open_clip, model: ViT-B-32, pretrained: laion2b_s34b_b79k}      a tag: downloaded once, then cached
    image: {name: open_clip, model: ViT-B-32, pretrained: weights/b32.safetensors}
    image: {name: open_clip, model: "local-dir:models/clip"}                      open_clip_config.json and weights

The model's own preprocessing for validation is used. There are no random weights: without `pretrained` nothing starts.
"""

import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from jaxtyping import Float32
from numpy import ndarray
from pydantic import Field, model_validator

from fedray.config import nearest_hint
from fedray.data.paths import resolve
from fedray.encoders import Encoder, Problem, Raw
from fedray.encoders._forward import HALF, check_half, forward, probed
from fedray.encoders._images import blank, decode
from fedray.encoders._texts import checked
from fedray.encoders._torchvision import mend_torchvision
from fedray.encoders._weights import digest, modality, read_json, snapshot, unloadable
from fedray.errors import MissingKeyError, UnknownNameError, UnsupportedError, WeightsError
from fedray.sections import EncoderConfig

if TYPE_CHECKING:
    import torch

FOLDER = "local-dir:"
SAID = ("mean", "std", "interpolation", "resize_mode")
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")


class Config(EncoderConfig):
    """Settings of the `open_clip` encoder."""

    name: Literal["open_clip"] = "open_clip"
    model: str = Field(min_length=1, description="an architecture's name, or local-dir:FOLDER")
    pretrained: str = Field("", description="a tag of open_clip's, or a file of weights; none with local-dir")
    model_configs: str = Field("", description="folder of further architectures, NAME.json each")
    normalize: bool = Field(True, description="to unit L2 norm")
    half: bool = Field(False, description=HALF)

    @model_validator(mode="after")
    def _has_weights_once(self) -> "Config":
        if self.model.startswith(FOLDER) and (self.pretrained or self.model_configs):
            raise UnsupportedError(
                f"model {self.model!r} beside pretrained or model_configs",
                "one place to take the model from",
                "The folder holds both: remove the other keys.",
            )
        if not self.model.startswith(FOLDER) and not self.pretrained:
            raise MissingKeyError(
                f"model {self.model!r} has no key 'pretrained'",
                "a tag of open_clip's or a file of weights",
                "Without one the weights would be random.",
            )
        return self


class _Source(NamedTuple):
    """Where a model is. create: what open_clip is asked for. preprocess: what is said of images, defaults left out."""

    create: tuple[str, str | None]
    weights: Path
    model: dict[str, Any]
    preprocess: dict[str, Any]


def describe(config: Config) -> dict[str, Any]:
    """See `fedray.encoders`. open_clip itself is imported only to find the file of a tag.

    Raises `MissingPathError`, `UnknownNameError` and `WeightsError` for what is not there.
    """
    source = _source(config)
    here = config.model.startswith(FOLDER)
    return {
        "name": config.name,
        "input": modality(config),
        "model": "local-dir" if here else {"name": config.model, "architecture": source.model},
        "weights": digest(source.weights),
        "preprocessing": _tokens(source) if modality(config) == "text" else _pixels(source),
        "normalize": config.normalize,
        **({"half": True} if config.half else {}),
    }


def _pixels(source: _Source) -> dict[str, Any]:
    """Size, mean, ... as far as the model says them; open_clip's version stands for its defaults in the rest."""
    said = {k: source.preprocess[k] for k in SAID if k in source.preprocess}
    defaults = {} if len(said) == len(SAID) else {"defaults": f"open_clip {version('open_clip_torch')}"}
    return {"size": source.model.get("vision_cfg", {}).get("image_size"), **said, **defaults}


def _tokens(source: _Source) -> dict[str, Any]:
    text = source.model.get("text_cfg", {})
    return {"tokenizer": text.get("hf_tokenizer_name", "clip_bpe"), "context_length": text.get("context_length", 77)}


def _source(config: Config) -> _Source:
    if config.model.startswith(FOLDER):
        return _in_folder(resolve(config.model.removeprefix(FOLDER), "model"))
    name, model = _architecture(config)
    if Path(config.pretrained).suffix in WEIGHTS:
        file = resolve(config.pretrained, "pretrained")
        return _Source((name, str(file)), file, model, {})
    return _tagged(name, model, config.pretrained)


def _in_folder(folder: Path) -> _Source:
    body = read_json(folder / "open_clip_config.json")
    model, preprocess = body.get("model_cfg"), body.get("preprocess_cfg", {})
    if not (isinstance(model, dict) and isinstance(preprocess, dict)):
        found = "open_clip_config.json has no mappings model_cfg and preprocess_cfg"
        raise WeightsError(found, "both", "Check the folder.", str(folder))
    if not any(file.suffix in (".safetensors", ".bin", ".pth") for file in folder.glob("*")):
        raise WeightsError(f"{folder} holds no weights", "open_clip_model.safetensors, or another file of weights")
    return _Source((f"{FOLDER}{folder}", None), folder, model, preprocess)


def _architecture(config: Config) -> tuple[str, dict[str, Any]]:
    """The name as open_clip knows it, and its file; read from the package's folder, the package is not imported."""
    package = importlib.util.find_spec("open_clip")
    if package is None or package.origin is None:
        raise WeightsError("the package open_clip is not installed", "it", "pip install open_clip_torch")
    known = {file.stem: file for file in (Path(package.origin).parent / "model_configs").glob("*.json")}
    own = {file.stem: file for file in _own(config)}
    if own.keys() & known.keys():
        name = min(own.keys() & known.keys())
        raise UnsupportedError(f"{name}.json in model_configs is also one of open_clip's own", "another name")
    name, known = config.model.replace("/", "-"), known | own
    if name not in known:
        mend = nearest_hint(name, list(known)) or f"{FOLDER}FOLDER takes a model from a folder."
        raise UnknownNameError(f"open_clip has no architecture {config.model!r}", f"one of its {len(known)}", mend)
    return name, read_json(known[name])


def _own(config: Config) -> list[Path]:
    return sorted(resolve(config.model_configs, "model_configs").glob("*.json")) if config.model_configs else []


def _tagged(name: str, model: dict[str, Any], tag: str) -> _Source:
    """The file of a tag, downloaded if it is not in the cache."""
    mend_torchvision()
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(name)
    entry = open_clip.get_pretrained_cfg(name, tag)
    if not entry:
        mend = nearest_hint(tag, tags) or f"A file of weights ends in {', '.join(WEIGHTS)}."
        raise UnknownNameError(f"{name} has no tag {tag!r}", f"one of {', '.join(tags)}" if tags else "a file", mend)
    if bool(entry.get("quick_gelu")) != bool(model.get("quick_gelu")):
        other = f"{name}-quickgelu" if entry.get("quick_gelu") else name.removesuffix("-quickgelu")
        raise UnsupportedError(f"{name} has not the activation {tag!r} was trained with", other, f"Set model: {other}.")
    file = _from_hub(entry["hf_hub"]) if "hf_hub" in entry else Path(open_clip.download_pretrained(entry))
    said = {k: list(entry[k]) if isinstance(entry[k], tuple) else entry[k] for k in SAID if k in entry}
    return _Source((name, str(file)), file, model, said)


def _from_hub(place: str) -> Path:
    """OWNER/NAME/FILE, or OWNER/NAME/ for the file that open_clip's own models have. Not by open_clip's own download:
    that asks the network for what is in the cache, and without network goes on asking for a minute."""
    name, _, file = place.rpartition("/")
    best, fallback = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
    if file:
        best, fallback = str(Path(file).with_suffix(".safetensors")), file
    folder = snapshot(name, lambda f: (f / best).is_file() or (f / fallback).is_file(), (best,), (fallback,))
    return next(folder / f for f in (best, fallback) if (folder / f).is_file())


def make(config: Config, device: str, max_pixels: int) -> Encoder:
    """See `fedray.encoders`. Raises what `describe` raises; weights that do not fit the model are a `WeightsError`."""
    source, kind = _source(config), modality(config)
    model, preprocess, tokenizer = _loaded(config, source)
    check_half(config.half, device)
    model = model.eval().to(device)
    prepare = partial(_prepare_text, tokenizer, Lock()) if kind == "text" else partial(_prepare, preprocess, max_pixels)
    tower = model.encode_text if kind == "text" else model.encode_image
    sample = tokenizer(["a"])[0] if kind == "text" else preprocess(blank(8, 8))
    return probed(sample, prepare, partial(_embed, tower, config, device))


def _loaded(config: Config, source: _Source) -> tuple[Any, Any, Any]:
    """Model, transform of an image, tokenizer."""
    mend_torchvision()
    import open_clip

    name, pretrained = source.create
    if config.model_configs:
        open_clip.add_model_config(resolve(config.model_configs, "model_configs"))
    images = {f"image_{key}": value for key, value in source.preprocess.items() if key in SAID}
    try:
        model, preprocess = open_clip.create_model_from_pretrained(name, pretrained, weights_only=True, **images)
        return model, preprocess, open_clip.get_tokenizer(name) if config.input == "text" else None
    except unloadable() as error:
        raise WeightsError(
            f"open_clip cannot load it ({type(error).__name__}: {str(error)[:300]})",
            "weights of this very architecture",
            "Check model and pretrained.",
            str(source.weights),
        ) from error


def _prepare(preprocess: Callable[[Any], "torch.Tensor"], max_pixels: int, raw: Raw) -> "torch.Tensor | Problem":
    image = decode(raw, max_pixels)
    return image if isinstance(image, Problem) else preprocess(image)


def _prepare_text(tokenizer: Callable[[list[str]], Any], lock: Lock, raw: Raw) -> "torch.Tensor | Problem":
    text = checked(raw)
    if isinstance(text, Problem):
        return text
    with lock:  # tokenizers written in Rust cannot be shared
        return tokenizer([text])[0]


def _embed(tower: Any, config: Config, device: str, items: "Sequence[torch.Tensor]") -> Float32[ndarray, "n dim"]:
    import torch

    batch = torch.stack(list(items)).to(device)
    return forward(lambda: tower(batch), device, config.normalize, config.half)
