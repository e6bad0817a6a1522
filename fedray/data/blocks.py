"""What each client trains on in a round, and how clients are stacked.

`RoundSamples` is ragged: no padding, one flat array per column, made by one compiled pass over the clients.
The compiled trainers work on it as it is. `stack` cuts it into padded `ClientBlock`s of one fixed width for
the vmapped path. The padding of a client depends on that client alone, so neither form depends on
who is packed beside whom.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numba
import numpy as np
from jaxtyping import Bool, Float32, Int, UInt64

from fedray import seeding
from fedray.data.negatives import fill_lowest, fill_negatives
from fedray.types import Ragged, flat_index


class RoundSamples(NamedTuple):
    """Ragged training samples of C clients in one round.

    rows[row_ptr[c]:row_ptr[c+1]]: the item ids client c touches, ascending. item[sample_ptr[c]:...]: its samples
    as positions in those rows; label 1 for positives, 0 for negatives. order[e, ...]: the sequence in which epoch
    e visits the samples (positions within the client's samples). In pairs, samples 2k and 2k + 1 are a positive and
    one of its negatives, and every order keeps them together.
    """

    client: Int[np.ndarray, " clients"]
    row_ptr: Int[np.ndarray, " clients_plus_1"]
    rows: Int[np.ndarray, " rows"]
    sample_ptr: Int[np.ndarray, " clients_plus_1"]
    item: Int[np.ndarray, " samples"]
    label: Float32[np.ndarray, " samples"]
    order: Int[np.ndarray, "epochs samples"]

    def n_samples(self) -> Int[np.ndarray, " clients"]:
        """Samples per client."""
        return np.diff(self.sample_ptr)

    def n_rows(self) -> Int[np.ndarray, " clients"]:
        """Touched rows per client."""
        return np.diff(self.row_ptr)

    def take(self, who: Int[np.ndarray, " k"]) -> "RoundSamples":
        """The samples of the clients at positions `who`, in that order."""
        rows, samples = flat_index(self.row_ptr, who), flat_index(self.sample_ptr, who)
        return RoundSamples(
            self.client[who],
            np.append(0, np.cumsum(self.n_rows()[who])),
            self.rows[rows],
            np.append(0, np.cumsum(self.n_samples()[who])),
            self.item[samples],
            self.label[samples],
            self.order[:, samples],
        )


class ClientBlock(NamedTuple):
    """Padded stack of `width` clients: C clients, A rows, S steps, B samples a step.

    `slot[C]` is the client's position in the `RoundSamples`, -1 for padding; `rows` is padded with item 0, which
    no sample of that slot then refers to.
    """

    slot: Int[np.ndarray, " C"]
    rows: Int[np.ndarray, "C A"]
    n_rows: Int[np.ndarray, " C"]
    item: Int[np.ndarray, "C S B"]
    label: Float32[np.ndarray, "C S B"]
    mask: Bool[np.ndarray, "C S B"]


def draw_samples(
    seed: int,
    round_: int,
    client: Int[np.ndarray, " clients"],
    train: Ragged,
    spare: Ragged,
    n_items: int,
    negatives: int,
    epochs: int,
    pairs: bool = False,
    lowest: bool = False,
    cold: Int[np.ndarray, " cold"] | None = None,
) -> RoundSamples:
    """Positives, fresh negatives and epoch orders of the given clients (`train` and `spare` row for row).

    Each positive comes with `negatives` distinct items outside `spare`; a client that knows every item gets none.
    pairs: as pairs of a positive and each of its negatives. lowest: as many of the lowest ids outside `spare`
    instead, at most all of them, the same every round. cold: ascending ids that nobody draws: they are not there yet.
    Raises nothing: sizes were checked when the data were made.
    """
    if cold is not None and len(cold):
        there = np.delete(np.arange(n_items, dtype=np.int32), cold)
        place = np.full(n_items, -1, np.int64)
        place[there] = np.arange(len(there))
        lists = _placed(train, place), _placed(spare, place)
        found = draw_samples(seed, round_, client, *lists, len(there), negatives, epochs, pairs, lowest)
        return found._replace(rows=there[found.rows])
    pool = n_items - spare.lengths()
    n_neg = np.where(pool > 0, train.lengths() * negatives, 0)
    n_neg = np.minimum(n_neg, pool) if lowest else n_neg
    sample_ptr = np.concatenate([[0], np.cumsum(train.lengths() + n_neg)]).astype(np.int64)
    draw_keys = seeding.keys(seed, "negatives", round_, client)
    order_keys = seeding.keys(seed, "order", round_, client)
    drawn = train.ptr, train.values, spare.ptr, spare.values, n_items, negatives, sample_ptr, lowest
    items = _draw_items(draw_keys, *drawn)
    if pairs:
        items, sample_ptr = _paired(items, train.ptr, sample_ptr, negatives), 2 * np.cumsum(np.append(0, n_neg))
    row_ptr, rows, item = _unique_rows(items, sample_ptr, n_items)
    label = _alternating(len(items)) if pairs else _labels(train.ptr, sample_ptr)
    order = _pair_orders(order_keys, sample_ptr, epochs) if pairs else _orders(order_keys, sample_ptr, epochs)
    return RoundSamples(client, row_ptr, rows, sample_ptr, item, label, order)


def _placed(lists: Ragged, place: Int[np.ndarray, " items"]) -> Ragged:
    """Each item's place in place of its id, those without one (-1) left out."""
    found = place[lists.values]
    return Ragged(np.append(0, np.cumsum(found >= 0))[lists.ptr], found[found >= 0])


@numba.njit(cache=True)
def _draw_items(
    keys: np.ndarray,
    train_ptr: np.ndarray,
    train: np.ndarray,
    spare_ptr: np.ndarray,
    spare: np.ndarray,
    n_items: int,
    negatives: int,
    sample_ptr: np.ndarray,
    lowest: bool,
) -> np.ndarray:
    out, scratch = np.empty(sample_ptr[-1], np.int32), np.empty(n_items, np.int32)
    for c in range(len(keys)):
        lo, n_pos = sample_ptr[c], train_ptr[c + 1] - train_ptr[c]
        out[lo : lo + n_pos] = train[train_ptr[c] : train_ptr[c + 1]]
        part = out[lo + n_pos : sample_ptr[c + 1]]
        if lowest:
            fill_lowest(spare, spare_ptr[c], spare_ptr[c + 1], part)
        else:
            fill_negatives(keys[c], spare, spare_ptr[c], spare_ptr[c + 1], n_items, max(negatives, 1), part, scratch)
    return out


@numba.njit(cache=True)
def _paired(items: np.ndarray, train_ptr: np.ndarray, sample_ptr: np.ndarray, negatives: int) -> np.ndarray:
    """Each client's positives then negatives, as (positive, negative), ...: its j-th negative is of positive
    j // negatives."""
    out = np.empty(2 * (sample_ptr[-1] - train_ptr[-1]), np.int32)
    end = 0
    for c in range(len(train_ptr) - 1):
        first = sample_ptr[c] + train_ptr[c + 1] - train_ptr[c]
        for s in range(first, sample_ptr[c + 1]):
            out[end] = items[sample_ptr[c] + (s - first) // negatives]
            out[end + 1] = items[s]
            end += 2
    return out[:end]


def _alternating(n: int) -> Float32[np.ndarray, " n"]:
    return (np.arange(n) % 2 == 0).astype(np.float32)


def _pair_orders(
    keys: UInt64[np.ndarray, " clients"], sample_ptr: Int[np.ndarray, " clients_plus_1"], epochs: int
) -> Int[np.ndarray, "epochs samples"]:
    pairs = _orders(keys, sample_ptr // 2, epochs)
    return np.stack([2 * pairs, 2 * pairs + 1], axis=2).reshape(epochs, -1)


@numba.njit(cache=True)
def _unique_rows(items: np.ndarray, sample_ptr: np.ndarray, n_items: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct items per client (ascending), and each sample's position among them.

    A client that touches much of the catalogue finds its rows by a walk over it, one that touches little by a sort.
    """
    n_clients = len(sample_ptr) - 1
    row_ptr = np.zeros(n_clients + 1, np.int64)
    rows = np.empty(len(items), np.int32)
    position = np.empty(len(items), np.int32)
    owner = np.full(n_items, -1, np.int32)
    place, found = np.empty(n_items, np.int32), np.empty(n_items + 1, np.int32)
    end = 0
    for c in range(n_clients):
        start = end
        for s in range(sample_ptr[c], sample_ptr[c + 1]):
            if owner[items[s]] != c:
                owner[items[s]] = c
                rows[end] = items[s]
                end += 1
        if 8 * (end - start) > n_items:
            _walk(owner, c, found)
            rows[start:end] = found[: end - start]
        else:
            rows[start:end].sort()
        for r in range(start, end):
            place[rows[r]] = r - start
        for s in range(sample_ptr[c], sample_ptr[c + 1]):
            position[s] = place[items[s]]
        row_ptr[c + 1] = end
    return row_ptr, rows[:end].copy(), position


@numba.njit(cache=True, inline="always")
def _walk(owner: np.ndarray, c: int, out: np.ndarray) -> None:
    """The items that client c owns, ascending; without a branch, as half of them are."""
    end = 0
    for i in range(len(owner)):
        out[end] = i
        end += owner[i] == c


@numba.njit(cache=True)
def _labels(train_ptr: np.ndarray, sample_ptr: np.ndarray) -> np.ndarray:
    label = np.zeros(sample_ptr[-1], np.float32)
    for c in range(len(train_ptr) - 1):
        label[sample_ptr[c] : sample_ptr[c] + train_ptr[c + 1] - train_ptr[c]] = 1.0
    return label


@numba.njit(cache=True)
def _orders(keys: np.ndarray, sample_ptr: np.ndarray, epochs: int) -> np.ndarray:
    """A Fisher-Yates shuffle per client and epoch, all from the client's own key."""
    order = np.empty((epochs, sample_ptr[-1]), np.int32)
    for c in range(len(keys)):
        lo, n = sample_ptr[c], sample_ptr[c + 1] - sample_ptr[c]
        counter = np.uint64(0)
        for e in range(epochs):
            for i in range(n):
                j = seeding.below(keys[c], counter, i + 1)
                counter += np.uint64(1)
                order[e, lo + i] = order[e, lo + j]
                order[e, lo + j] = i
    return order


def bucket(n: int) -> int:
    """The padded size for n: the next of 8, 12, 16, 24, 32, 48, ..."""
    power = max(8, 1 << (int(n) - 1).bit_length())
    return power * 3 // 4 if power > 8 and n <= power * 3 // 4 else power


def stack(samples: RoundSamples, batch_size: int, width: int, extra: int = 0) -> Iterator[ClientBlock]:
    """Padded blocks of `width` clients, grouped by the clients' own padded sizes; `extra` pads further
    (a law: it changes nothing). Clients without samples are left out.
    """
    n, a = samples.n_samples(), samples.n_rows()
    shape: dict[tuple[int, int, int], list[int]] = {}
    for c in np.flatnonzero(n):
        steps = -(-int(n[c]) // batch_size)
        batch = batch_size if steps > 1 else min(batch_size, bucket(n[c]))
        shape.setdefault((bucket(a[c]) + extra, steps, batch + extra), []).append(int(c))
    for (rows, steps, batch), members in sorted(shape.items()):
        for i in range(0, len(members), width):
            yield _pad(samples, np.array(members[i : i + width]), rows, steps, batch, batch_size, width)


def _pad(
    samples: RoundSamples, members: np.ndarray, rows: int, steps: int, batch: int, batch_size: int, width: int
) -> ClientBlock:
    epochs = len(samples.order)
    block = ClientBlock(
        slot=np.full(width, -1),
        rows=np.zeros((width, rows), np.int64),
        n_rows=np.zeros(width, np.int64),
        item=np.zeros((width, epochs * steps, batch), np.int64),
        label=np.zeros((width, epochs * steps, batch), np.float32),
        mask=np.zeros((width, epochs * steps, batch), np.bool_),
    )
    for k, c in enumerate(members):
        own = slice(samples.row_ptr[c], samples.row_ptr[c + 1])
        block.slot[k], block.n_rows[k] = c, own.stop - own.start
        block.rows[k, : block.n_rows[k]] = samples.rows[own]
        _fill(block, k, samples, c, steps, batch_size)
    return block


def _fill(block: ClientBlock, k: int, samples: RoundSamples, c: int, steps: int, batch_size: int) -> None:
    lo, hi = samples.sample_ptr[c], samples.sample_ptr[c + 1]
    for e, order in enumerate(samples.order[:, lo:hi]):
        for s in range(steps):
            now = lo + order[s * batch_size : (s + 1) * batch_size]
            block.item[k, e * steps + s, : len(now)] = samples.item[now]
            block.label[k, e * steps + s, : len(now)] = samples.label[now]
            block.mask[k, e * steps + s, : len(now)] = True
