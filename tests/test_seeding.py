"""Every number is a function of (seed, stream, round, client)."""

import zlib

import numba
import numpy as np
import pytest

from fedray import seeding
from fedray.config import load_config, make_config
from fedray.errors import OutOfRangeError

MASK = (1 << 64) - 1


def mix(z):
    """SplitMix64's finaliser on Python integers."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return z ^ (z >> 31)


def slow_key(seed, stream, round_, client):
    golden = 0x9E3779B97F4A7C15
    z = mix((zlib.crc32(stream.encode()) + golden) & MASK)
    for part in (seed, round_):
        z = mix(((z ^ part) + golden) & MASK)
    return mix(((z ^ client) * 0xBF58476D1CE4E5B9 + golden) & MASK)


@numba.njit
def many_below(key, n, count):
    out = np.empty(count, np.int64)
    for i in range(count):
        out[i] = seeding.below(key, np.uint64(i), n)
    return out


@pytest.mark.parametrize(
    ("key", "outputs"),
    [
        (0, [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]),
        (1234567, [6457827717110365317, 3203168211198807973, 9817491932198370423]),
    ],
)
def test_draw_is_splitmix64_as_published(key, outputs):
    assert [int(seeding.draw(np.uint64(key), np.uint64(i))) for i in range(3)] == outputs


@pytest.mark.parametrize("parts", [(0, "order", 0, 0), (7, "cohort", 3, 11), (2**63 - 1, "split", 99, 2**31)])
def test_key_equals_the_same_on_python_integers(parts):
    assert int(seeding.key(*parts)) == slow_key(*parts)


@pytest.mark.parametrize("other", [(2, "order", 3, 4), (1, "cohort", 3, 4), (1, "order", 4, 4), (1, "order", 3, 5)])
def test_a_key_depends_on_each_of_its_four_parts(other):
    assert seeding.key(1, "order", 3, 4) != seeding.key(*other)


def test_keys_of_neighbouring_parts_do_not_collide():
    found = {
        int(k) for s in range(5) for x in seeding.STREAMS for r in range(5) for k in seeding.keys(s, x, r, range(40))
    }
    assert len(found) == 5 * len(seeding.STREAMS) * 5 * 40


def test_keys_are_the_key_of_each_client_in_any_order():
    clients = np.array([5, 0, 17, 3])
    found = seeding.keys(1, "negatives", 2, clients)
    assert found.dtype == np.uint64
    assert found.tolist() == [int(seeding.key(1, "negatives", 2, c)) for c in clients]
    np.testing.assert_array_equal(seeding.keys(1, "negatives", 2, clients[::-1]), found[::-1])
    assert len(seeding.keys(1, "negatives", 2, clients[:0])) == 0


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint64])
def test_read_only_arrays_of_any_integer_type_give_the_same_keys(dtype):
    """Ray delivers arrays read-only."""
    clients = np.arange(5, dtype=dtype)
    clients.flags.writeable = False
    np.testing.assert_array_equal(seeding.keys(0, "order", 0, clients), seeding.keys(0, "order", 0, range(5)))


def test_an_unknown_stream_is_refused_by_name():
    with pytest.raises(KeyError, match="no random stream 'ordre'.*order"):
        seeding.key(0, "ordre")


@pytest.mark.parametrize("n", [2, 10, 97])
def test_below_is_uniform_and_in_range(n):
    count = 100_000
    counts = np.bincount(many_below(seeding.key(0, "negatives"), n, count), minlength=n)
    assert len(counts) == n
    chi2 = ((counts - count / n) ** 2 / (count / n)).sum()
    assert chi2 < n - 1 + 5 * np.sqrt(2 * n)


def test_below_one_is_always_zero():
    assert many_below(seeding.key(0, "negatives"), 1, 100).tolist() == [0] * 100


def test_unit_is_uniform_on_the_half_open_interval():
    x = np.array([seeding.unit(np.uint64(9), np.uint64(i)) for i in range(20_000)])
    assert x.min() >= 0
    assert x.max() < 1
    assert np.abs(np.histogram(x, 10, (0, 1))[0] - 2000).max() < 5 * np.sqrt(2000)


def test_generators_repeat_by_key_and_differ_between_keys():
    a, again, b = (seeding.generator(seeding.key(s, "init_server")).random(4) for s in (0, 0, 1))
    np.testing.assert_array_equal(a, again)
    assert not np.array_equal(a, b)


def test_a_seed_the_keys_cannot_hold_is_a_config_error(tmp_path):
    assert make_config({"seed": 2**63 - 1}).seed == 2**63 - 1
    (tmp_path / "a.yaml").write_text("data: {source: synthetic}")
    for setting in ("seed", "data.seed"):
        with pytest.raises(OutOfRangeError, match=setting):
            load_config(tmp_path / "a.yaml", [f"{setting}={2**63}"])
