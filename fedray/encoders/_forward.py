"""The forward pass of a frozen torch model."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from fedray.encoders import Encoder, Problem, Raw
from fedray.errors import UnsupportedError

if TYPE_CHECKING:
    import torch


HALF = "matrix products in float16, on a GPU only: faster, and other numbers from the third digit on"


def check_half(half: bool, device: str) -> None:
    """Raises `UnsupportedError` for half precision on a CPU: the store would take two kinds of numbers for one."""
    if half and not device.startswith("cuda"):
        raise UnsupportedError("`half: true` without a GPU", "a GPU, or half: false", "A CPU is slower in float16.")


def forward(call: "Callable[[], torch.Tensor]", device: str, normalize: bool, half: bool) -> Float32[ndarray, "n dim"]:
    """The rows `call` returns, as float32 and, with `normalize`, of unit L2 norm; `half` as `HALF` says."""
    import torch

    with torch.inference_mode():
        with torch.autocast(torch.device(device).type, torch.float16, enabled=half):
            rows = call()
        rows = rows.float()
        return (torch.nn.functional.normalize(rows, dim=-1) if normalize else rows).cpu().numpy()


def probed(
    sample: Any, prepare: Callable[[Raw], Any | Problem], embed: Callable[[Sequence[Any]], Float32[ndarray, "n dim"]]
) -> Encoder:
    """The encoder of these two functions, its `dim` found by embedding a prepared sample. No items give [0, dim]."""
    dim = embed([sample]).shape[1]
    return Encoder(dim, prepare, lambda items: embed(items) if len(items) else np.empty((0, dim), np.float32))
