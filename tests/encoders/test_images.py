"""Decoding: what comes out of a good file, and that no bad one raises."""

import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageOps

from fedray.encoders import Problem
from fedray.encoders._images import decode
from tests.encoders.models import file_of, noise, picture

PLENTY = 10_000_000


def kind(body, max_pixels=PLENTY):
    found = decode(body, max_pixels)
    return found.kind if isinstance(found, Problem) else "good"


HELD = {
    "JPEG": "RGB L 1 CMYK YCbCr",
    "PNG": "RGB L 1 P LA RGBA",
    "WEBP": "RGB L 1 P CMYK YCbCr LA RGBA",
    "GIF": "RGB L 1 P LA RGBA",
    "BMP": "RGB L 1 P RGBA",
    "TIFF": "RGB L 1 P CMYK YCbCr LA RGBA",
    "PPM": "RGB L 1 RGBA",
    "AVIF": "RGB L 1 P CMYK YCbCr LA RGBA",
    "JPEG2000": "RGB L CMYK YCbCr LA RGBA",
}


@pytest.mark.parametrize(("form", "mode"), [(form, mode) for form, modes in HELD.items() for mode in modes.split()])
def test_every_mode_a_format_can_hold_becomes_rgb(form, mode):
    image = noise(0).convert(mode)
    found = decode(file_of(image, form), PLENTY)
    assert (found.mode, found.size) == ("RGB", image.size)
    loss = np.abs(np.asarray(found, int) - np.asarray(image.convert("RGB"), int)).mean()
    assert loss < (1 if form in ("PNG", "BMP", "TIFF") else 25)


def test_a_lossless_file_comes_back_bit_for_bit():
    assert np.array_equal(decode(file_of(noise(1), "PNG"), PLENTY), noise(1))


def test_what_is_transparent_lies_on_white():
    clear, half = Image.new("RGBA", (4, 4), (255, 0, 0, 0)), Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert np.asarray(decode(file_of(clear, "PNG"), PLENTY)).min() == 255
    assert np.ptp(np.asarray(decode(file_of(half, "PNG"), PLENTY))) == 0
    assert abs(decode(file_of(half, "PNG"), PLENTY).getpixel((0, 0))[0] - 127) <= 1
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([9, 9, 9])
    assert decode(file_of(palette, "GIF", transparency=0), PLENTY).getpixel((1, 1)) == (255, 255, 255)
    assert decode(file_of(palette, "GIF"), PLENTY).getpixel((1, 1)) == (9, 9, 9)


def test_sixteen_bits_are_scaled_not_cut_off():
    grey = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    for form in ("PNG", "TIFF"):
        found = np.asarray(decode(file_of(Image.fromarray(grey), form), PLENTY))
        assert np.array_equal(found[..., 0], np.rint(grey / 257).astype(np.uint8))
    floats = decode(file_of(Image.fromarray(np.array([[0.0, 300.0, np.nan]], np.float32)), "TIFF"), PLENTY)
    assert np.asarray(floats)[0, :, 0].tolist() == [0, 255, 0]


@pytest.mark.parametrize("orientation", range(10))
def test_the_exif_orientation_is_applied(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    body = file_of(noise(2), "PNG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(body)))
    assert np.array_equal(decode(body, PLENTY), upright)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_does_not_cost_the_picture():
    body = file_of(noise(2), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert kind(body) == "good"


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_taken(form):
    first, second = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    body = file_of(first, form, save_all=True, append_images=[second])
    red, _, blue = decode(body, PLENTY).getpixel((4, 4))
    assert red > 200 > 50 > blue


def test_what_is_no_image():
    assert kind(b"") == "empty_file"
    assert kind("a text") == "wrong_type"
    for body in (b"\0", b"   ", b"<html>404</html>", b"\xff" * 500, b"RIFFxxxxAVI ", b"%!PS-Adobe-3.0 EPSF-3.0\n"):
        assert kind(body) == "not_an_image"


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF"])
def test_a_file_that_breaks_off_is_truncated(form):
    body = picture(3, (60, 50), form)
    assert {kind(body[: len(body) * part // 8]) for part in range(2, 8)} == {"truncated"}
    assert kind(body[:16]) == "truncated"


def test_damaged_data_are_truncated():
    body = bytearray(picture(3))
    at = body.index(b"IDAT") + 20
    body[at : at + 40] = bytes(40)
    assert kind(bytes(body)) == "truncated"


def png_header(width, height):
    """A PNG that promises pixels it has not."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"".join([b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", head), chunk(b"IDAT", b"\0" * 8), chunk(b"IEND", b"")])


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def test_size_is_judged_before_a_pixel_is_decoded():
    """Had these pixels been asked for, the answer were "truncated"."""
    assert kind(png_header(100, 100)) == "truncated"
    assert kind(png_header(100, 100), max_pixels=9_999) == "too_large"
    assert kind(png_header(4_000, 4_000)) == "too_large"
    assert kind(png_header(60_000, 60_000)) == "too_large"  # Pillow's own bound
    assert "4000 x 5000" in decode(png_header(4_000, 5_000), PLENTY).detail
    assert kind(picture(0, (10, 10)), max_pixels=100) == "good"
    assert kind(picture(0, (10, 10)), max_pixels=99) == "too_large"


def test_a_strip_is_too_large():
    """Its shorter side enlarged to what an encoder reads, it would be one."""
    assert kind(file_of(Image.new("RGB", (4000, 1)), "PNG")) == "too_large"
    assert kind(file_of(Image.new("RGB", (200, 1)), "PNG")) == "good"


def test_nothing_global_is_set():
    before = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kind(png_header(10_000, 10_000)) == "too_large"
    assert before == Image.MAX_IMAGE_PIXELS


SEEDS = [
    picture(0, kind="JPEG"),
    file_of(
        noise(1), "JPEG", progressive=True, exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"
    ),
    picture(2),
    picture(3, mode="P"),
    picture(4, mode="RGBA"),
    picture(5, kind="WEBP"),
    picture(6, kind="GIF", mode="P"),
    file_of(noise(7), "GIF", save_all=True, append_images=[noise(8)]),
    file_of(noise(7), "PNG", save_all=True, append_images=[noise(8)]),
]


def mutated(rng, body):
    """Cut off, with bytes changed, or with a piece replaced by another of other length."""
    what, at = rng.integers(3), int(rng.integers(len(body)))
    if what == 0:
        return body[:at]
    if what == 1:
        out = bytearray(body)
        for place in rng.integers(0, len(body) if rng.random() < 0.5 else min(100, len(body)), rng.integers(1, 12)):
            out[place] = rng.integers(256)
        return bytes(out)
    return body[:at] + rng.bytes(int(rng.integers(40))) + body[at + int(rng.integers(40)) :]


def test_no_file_makes_it_raise():
    rng, seen = np.random.default_rng(0), set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for turn in range(4_000):
            body = mutated(rng, SEEDS[turn % len(SEEDS)])
            found = decode(body, 100_000)
            seen.add(found.kind if isinstance(found, Problem) else found.mode)
    assert seen <= {"RGB", "truncated", "not_an_image", "too_large", "empty_file"}
    assert {"RGB", "truncated", "not_an_image", "too_large"} <= seen


def test_eight_threads_decode_the_same():
    bodies = [picture(seed, kind=form) for seed in range(10) for form in ("JPEG", "PNG", "WEBP", "GIF")]
    alone = [np.asarray(decode(body, PLENTY)) for body in bodies]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda body: np.asarray(decode(body, PLENTY)), bodies))
    assert all(map(np.array_equal, alone, together))
