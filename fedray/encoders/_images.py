"""The bytes of an image file -> an upright RGB picture, or what is wrong with them. No file makes this raise."""

import io
import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np

from fedray.encoders import Problem, Raw

if TYPE_CHECKING:
    import PIL.Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
"""No other is tried: among Pillow's formats are some that start programs (EPS) or fetch what they refer to."""

_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    OverflowError,
    EOFError,
    RuntimeError,
    struct.error,
    zlib.error,
)
_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"\xff\x4f\xff\x51")
_STRIP = 200  # encoders enlarge the shorter side to some hundred pixels; a hair's breadth would make a giant
_ORIENTATION = 0x0112


def decode(body: Raw, max_pixels: int) -> "PIL.Image.Image | Problem":
    """The first frame as a `PIL.Image.Image` in RGB, turned as its EXIF says, on white where it is transparent.

    Kinds of `Problem`: wrong_type for a text, empty_file, not_an_image, too_large for more than `max_pixels` (known
    from the header; no pixel is decoded) or a strip over 200 times as long as wide, truncated. Whatever `max_pixels`
    says, Pillow's own bound of 179 million pixels holds. Thread-safe.
    """
    if isinstance(body, str):
        return Problem("wrong_type", "a text, not the bytes of an image")
    if not body:
        return Problem("empty_file")
    opened = _opened(body)
    if isinstance(opened, Problem):
        return opened
    return _too_large(opened.size, max_pixels) or _pixels(opened)


def blank(width: int, height: int) -> "PIL.Image.Image":
    """A black picture, to try a model with."""
    from PIL import Image

    return Image.new("RGB", (width, height))


def _opened(body: bytes) -> "PIL.Image.Image | Problem":
    """The header, read."""
    from PIL import Image

    try:
        return Image.open(io.BytesIO(body), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        return Problem("too_large", str(error))
    except _DAMAGED as error:
        known = body.startswith(_STARTS) or (body[:4] == b"RIFF" and body[8:12] == b"WEBP")
        return Problem("truncated" if known else "not_an_image", f"{type(error).__name__} in its header" * known)


def _too_large(size: tuple[int, int], max_pixels: int) -> Problem | None:
    width, height = size
    if width * height > max_pixels:
        return Problem("too_large", f"{width} x {height} pixels, more than {max_pixels}")
    if max(size) > _STRIP * min(size):
        return Problem("too_large", f"{width} x {height} pixels, a strip that would be enlarged to a giant")
    return None


def _pixels(opened: "PIL.Image.Image") -> "PIL.Image.Image | Problem":
    from PIL import Image

    try:
        opened.load()
        return _upright(_rgb(opened), opened)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        return Problem("too_large", str(error))
    except _DAMAGED as error:
        return Problem("truncated", str(error)[:200])


def _rgb(image: "PIL.Image.Image") -> "PIL.Image.Image":
    from PIL import Image

    if image.mode.startswith(("I", "F")):
        return _scaled_to_bytes(image).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def _scaled_to_bytes(image: "PIL.Image.Image") -> "PIL.Image.Image":
    """Grey of more than 8 bits; Pillow would cut it off at 255. Integers are taken for 16 bit, floats as they are."""
    from PIL import Image

    values = np.asarray(image)
    grey = values.clip(0, 65535) / 257 if values.dtype.kind in "iu" else np.nan_to_num(values).clip(0, 255)
    return Image.fromarray(np.rint(grey).astype(np.uint8))


def _upright(rgb: "PIL.Image.Image", opened: "PIL.Image.Image") -> "PIL.Image.Image":
    turn = _turn(opened)
    return rgb if turn is None else rgb.transpose(turn)


def _turn(opened: "PIL.Image.Image") -> "PIL.Image.Transpose | None":
    """What undoes the EXIF orientation. A picture with broken EXIF is still a picture."""
    from PIL.Image import Transpose

    try:
        orientation = opened.getexif().get(_ORIENTATION)
    except _DAMAGED:
        return None
    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return turns.get(orientation) if isinstance(orientation, int) else None
