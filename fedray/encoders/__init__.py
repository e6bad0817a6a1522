"""What turns an item's raw image or text into an embedding: one module an encoder, named as in the YAML.

An encoder module holds

    Config            its keys, laid over `EncoderConfig`
    describe(config)  all that decides its numbers, as JSON values: weights by digest, preprocessing by name and size.
                      Cheap: no model is loaded. Equal descriptions promise equal embeddings.
    make(config, device, max_pixels) -> Encoder

An item that cannot be encoded is a value, not an exception: `prepare` returns a `Problem` in its place.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from jaxtyping import Float32
from numpy import ndarray

Raw = str | bytes
"""A text, or the bytes of an image file."""

Kind = Literal[
    "no_image",  # the catalogue names none, or its file is not there
    "empty_file",
    "unreadable",  # the file is there and the system does not give it
    "not_an_image",
    "truncated",  # the picture breaks off, or its data are damaged
    "too_large",  # more pixels than encoding.max_pixels: a decompression bomb
    "no_text",  # every field is missing
    "empty_text",
    "wrong_type",  # a field that is neither text nor number nor a list of these
    "not_utf8",
    "not_finite",  # the encoder made a NaN or an infinity of it
    "encoder_failed",  # the encoder refused it, alone as well
    "encoder_died",  # each actor that tried it was lost
]


class Problem(NamedTuple):
    """Why an item has no embedding."""

    kind: Kind
    detail: str = ""


class Encoder(NamedTuple):
    """A frozen model in memory.

    dim: length of an embedding. prepare: one raw item -> what `embed` takes, or a `Problem`; thread-safe. embed:
    prepared items -> float32 embeddings, row by row, in one forward pass; one call at a time.
    """

    dim: int
    prepare: Callable[[Raw], Any | Problem]
    embed: Callable[[Sequence[Any]], Float32[ndarray, "n dim"]]


def fingerprint(description: Mapping[str, Any]) -> str:
    """16 hex digits of the SHA-256 over an encoder's description."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:16]
