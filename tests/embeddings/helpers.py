"""Keys and rows that can be told from each other, and processes that use a store."""

import time
from hashlib import sha256
from pathlib import Path

import numpy as np

from fedray.embeddings.store import EmbeddingStore

DIM = 5
DESCRIPTION = {"encoder": "toy", "size": [2, 3], "weights": "abc"}


def key(i):
    return sha256(b"item %d" % i).digest()


def keys(*numbers):
    return [key(i) for i in numbers]


def row(i, dim=DIM):
    """Moderate numbers with full mantissas, so that a lost bit shows."""
    raw = b"".join(sha256(b"%d/%d" % (i, j)).digest() for j in range(-(-dim // 16)))
    return (np.frombuffer(raw, "<u2")[:dim].astype(np.float32) / np.float32(3.7)) - np.float32(1e3)


def rows(*numbers, dim=DIM):
    return np.array([row(i, dim) for i in numbers], np.float32).reshape(-1, dim)


def opened(root, dtype="float32", description=DESCRIPTION):
    return EmbeddingStore(Path(root), description, dtype)


def filled(root, *groups, dtype="float32"):
    """One segment for each group of numbers; the segments in the order they were written."""
    files = []
    with opened(root, dtype) as store:
        for group in groups:
            assert store.write(keys(*group), rows(*group)) == len(group)
            files += [f for f in segment_files(store) if f not in files]
    return files


def segment_files(store):
    return sorted((store.folder / "segments").glob("*.safetensors"))


def flip(file, at, bit=0):
    raw = bytearray(file.read_bytes())
    raw[at] ^= 1 << bit
    file.write_bytes(raw)


def read_numbers(store, *numbers):
    """The numbers that are found; that these have the right rows, and the others zeros, is checked."""
    values, found = store.read(keys(*numbers))
    assert not found.any() or np.array_equal(values[found], rows(*(n for n, f in zip(numbers, found) if f)))
    assert not values[~found].any()
    return [n for n, f in zip(numbers, found) if f]


# run in other processes


def encode_all(root, n, shift, pipe):
    """Encode what others do not; send the numbers written here."""
    wanted = {key(i): i for i in range(n)}
    order = list(wanted)[shift:] + list(wanted)[:shift]
    written = []
    with opened(root) as store:
        pipe.send("ready")
        pipe.recv()
        while not store.has(order).all():
            mine, others = store.claim(order, 7)
            numbers = [wanted[k] for k in mine]
            time.sleep(0.002)
            assert store.write(mine, rows(*numbers)) == len(mine)
            written += numbers
            if others and not mine:
                time.sleep(0.002)
    pipe.send(written)


def claim_and_wait(root, n, pipe):
    store = opened(root)
    pipe.send(len(store.claim(keys(*range(n)), n).mine))
    pipe.recv()


def write_for_ever(root, pipe):
    with opened(root) as store:
        pipe.send("ready")
        for start in range(0, 10**9, 20):
            numbers = range(start, start + 20)
            store.write(keys(*numbers), rows(*numbers))
