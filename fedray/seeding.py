"""All randomness of fedray: a number is a function of (seed, stream, round, client), never of a slot.

`key` mixes the four into 64 bits. From a key, `generator` gives a numpy Generator (for large draws made
once), and compiled code draws with `draw(key, i)`, the i-th output of SplitMix64 started at that key:
no state to carry, any client's numbers can be made anywhere, in any order.
"""

import zlib

import numba
import numpy as np
from jaxtyping import Int, UInt64

STREAMS = (
    "init_server",
    "init_client",
    "cohort",
    "negatives",
    "order",
    "candidates",
    "split",
    "item_ids",
    "cold_items",
    "random_control",
    "ties",
    "synthetic",
    "server",
    "method",
    "noise",
    "bootstrap",
    "grouping",
    "sketch",
    "fusion",
    "map",
    "search",
)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S32, _S11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(32), np.uint64(11)


@numba.njit(numba.uint64(numba.uint64), cache=True, inline="always")
def _mix(z: np.uint64) -> np.uint64:
    z = (z ^ (z >> _S30)) * _MIX1
    z = (z ^ (z >> _S27)) * _MIX2
    return z ^ (z >> _S31)


@numba.njit(numba.uint64(numba.uint64, numba.uint64), cache=True, inline="always")
def draw(key: np.uint64, i: np.uint64) -> np.uint64:
    """The i-th 64-bit number of the key's stream (SplitMix64, counter-based)."""
    return _mix(key + (i + np.uint64(1)) * _GOLDEN)


@numba.njit(numba.int64(numba.uint64, numba.uint64, numba.int64), cache=True, inline="always")
def below(key: np.uint64, i: np.uint64, n: int) -> int:
    """The i-th number, uniform on 0..n-1, n < 2^31 (multiply-shift of 32 bits; bias below n / 2^32)."""
    return int(((draw(key, i) >> _S32) * np.uint64(n)) >> _S32)


@numba.njit(numba.float64(numba.uint64, numba.uint64), cache=True, inline="always")
def unit(key: np.uint64, i: np.uint64) -> float:
    """The i-th number, uniform on [0, 1)."""
    return np.float64(draw(key, i) >> _S11) * (1.0 / 9007199254740992.0)


def key(seed: int, stream: str, round_: int = 0, client: int = 0) -> np.uint64:
    """64 bits for one (seed, stream, round, client)."""
    return keys(seed, stream, round_, np.array([client]))[0]


def keys(seed: int, stream: str, round_: int, clients: Int[np.ndarray, " clients"]) -> UInt64[np.ndarray, " clients"]:
    """`key` for many clients at once."""
    if stream not in STREAMS:
        raise KeyError(f"no random stream {stream!r}; the streams are {', '.join(STREAMS)}")
    base = np.uint64(_chain(np.uint64(zlib.crc32(stream.encode())), np.array([seed, round_])))
    return _keys(base, np.asarray(clients, dtype=np.int64))


def generator(key_: np.uint64) -> np.random.Generator:
    """A numpy Generator (Philox) of its own for this key."""
    return np.random.Generator(np.random.Philox(key=int(key_)))


@numba.njit(numba.uint64(numba.uint64, numba.int64[:]), cache=True)
def _chain(start: np.uint64, parts: np.ndarray) -> np.uint64:
    z = _mix(start + _GOLDEN)
    for p in parts:
        z = _mix((z ^ np.uint64(p)) + _GOLDEN)
    return z


@numba.njit(cache=True)
def _keys(base: np.uint64, clients: np.ndarray) -> np.ndarray:
    out = np.empty(len(clients), np.uint64)
    for i in range(len(clients)):
        out[i] = _mix((base ^ np.uint64(clients[i])) * _MIX1 + _GOLDEN)
    return out
