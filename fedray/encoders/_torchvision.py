"""A torchvision whose compiled operators do not load, made importable.

A torchvision built for CUDA beside a torch built for the CPU (what an unpinned install gives) cannot load its own
library. Importing it then dies of an operator that does not exist, and open_clip and every transformers model with it,
though none of the three calls that operator here.
"""

import importlib.util
import sys
from pathlib import Path
from threading import Lock
from typing import Any

_OPERATORS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_lock = Lock()
_kept: list[Any] = []  # torch forgets the operators when the library object goes


def mend_torchvision() -> None:
    """To be called before whatever imports torchvision; a second call does nothing, nor does one without torchvision.

    The compiled operators are loaded if they can be. Otherwise those that torchvision names while it is imported are
    declared without code: calling them raises NotImplementedError, everything else works.
    """
    spec = importlib.util.find_spec("torchvision") if "torchvision" not in sys.modules else None
    if spec is None or spec.origin is None:
        return
    with _lock:
        if not _kept and not _loads(Path(spec.origin).parent):
            _declare()


def _loads(package: Path) -> bool:
    import torch

    for file in [*package.glob("_C*.so"), *package.glob("_C*.pyd"), *package.glob("_C*.dylib")]:
        try:
            torch.ops.load_library(str(file))  # type: ignore[no-untyped-call]
        except (OSError, RuntimeError):
            continue
        return True
    return False


def _declare() -> None:
    """RuntimeError: somebody in this process has declared them already."""
    import torch

    try:
        library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for schema in _OPERATORS.values():
            library.define(schema)  # type: ignore[no-untyped-call]
    except RuntimeError:
        return
    _kept.append(library)
