"""What clients keep between rounds: private parameters, and their own tuned item rows. Immutable: a round makes a
new store and shares what did not change, so keeping the best round's store costs a reference.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from fedray.errors import DataError
from fedray.types import Arrays, flat_index

NEVER = -1


@dataclass(frozen=True)
class TunedRows:
    """Each client's own item table, as the rows it touched in its last round and a rule for the others.

    rows[ptr[c]:ptr[c+1]] and values[name] are the touched rows; every other row of client c is
    `scale[name][c]` times that row of the broadcast of round `last_round[c]`.
    """

    ptr: Int[np.ndarray, " clients_plus_1"]
    rows: Int[np.ndarray, " R"]
    values: Arrays
    scale: Arrays

    def updated(self, who: Int[np.ndarray, " k"], new: "TunedRows") -> "TunedRows":
        """The store with the clients `who` (ascending) replaced by those of `new`, in order."""
        n = len(self.ptr) - 1
        if len(who) == n:
            return new
        source = np.arange(n)
        source[who] = n + np.arange(len(who))
        ptr = np.concatenate([self.ptr, self.ptr[-1] + new.ptr[1:]])
        take = flat_index(ptr, source)
        lengths = np.diff(ptr)[source]
        return TunedRows(
            np.concatenate([[0], np.cumsum(lengths)]),
            np.concatenate([self.rows, new.rows])[take],
            {k: np.concatenate([v, new.values[k]])[take] for k, v in self.values.items()},
            {k: _put(v, who, new.scale[k]) for k, v in self.scale.items()},
        )


@dataclass(frozen=True)
class ClientStore:
    """State of C clients between rounds, columnar.

    last_round[c]: the round client c last trained in, NEVER before. `bases[r]` is the broadcast of round r, kept
    while some client's tuned rows refer to it.
    """

    private: Arrays
    last_round: Int[np.ndarray, " clients"]
    tuned: TunedRows | None
    bases: Mapping[int, Arrays]


def fresh(private: Arrays, n_clients: int, tables: Mapping[str, Float[np.ndarray, "M ..."]]) -> ClientStore:
    """Clients that never trained. `tables`: the tuned tables' shapes (empty where the method tunes none)."""
    zero = np.zeros(0, np.int32)
    tuned = TunedRows(
        np.zeros(n_clients + 1, np.int64),
        zero,
        {k: np.zeros((0, *v.shape[1:]), v.dtype) for k, v in tables.items()},
        {k: np.ones(n_clients) for k in tables},
    )
    return ClientStore(private, np.full(n_clients, NEVER), tuned if tables else None, {})


def updated(
    store: ClientStore,
    who: Int[np.ndarray, " k"],
    round_: int,
    private: Arrays,
    tuned: TunedRows | None,
    base: Arrays,
) -> ClientStore:
    """`store` after the clients at positions `who` trained in `round_` from the broadcast `base`."""
    last = _put(store.last_round, who, np.int64(round_))
    kept = {k: _put(v, who, private[k]) for k, v in store.private.items()}
    if store.tuned is None or tuned is None:
        return replace(store, private=kept, last_round=last)
    used = {int(r): store.bases.get(int(r), base) for r in np.unique(last) if r != NEVER}
    return ClientStore(kept, last, store.tuned.updated(who, tuned), used)


def _put(array: np.ndarray, who: np.ndarray, values: np.ndarray | np.generic) -> np.ndarray:
    new = array.copy()
    new[who] = values
    return new


def to_arrays(store: ClientStore) -> Arrays:
    """The store as flat named arrays, for a file: `private/x`, `last_round`, `tuned/...`, `base/<round>/x`."""
    out = {f"private/{k}": v for k, v in store.private.items()} | {"last_round": store.last_round}
    if store.tuned is not None:
        out |= {"tuned/ptr": store.tuned.ptr, "tuned/rows": store.tuned.rows}
        out |= {f"tuned/values/{k}": v for k, v in store.tuned.values.items()}
        out |= {f"tuned/scale/{k}": v for k, v in store.tuned.scale.items()}
    out |= {f"base/{r}/{k}": v for r, params in store.bases.items() for k, v in params.items()}
    return {k: np.ascontiguousarray(v) for k, v in out.items()}


def from_files(parts: Sequence[Arrays], client: Int[np.ndarray, " clients"]) -> ClientStore:
    """The stores of several files as one, its clients in the order of `client`."""
    ids = np.concatenate([p["client"] for p in parts])
    unknown = client[~np.isin(client, ids)]
    if len(unknown):
        raise DataError(f"no saved state of clients {unknown[:5].tolist()}", "the clients that were saved")
    place = np.argsort(ids, kind="stable")[np.searchsorted(np.sort(ids), client)]
    private = {k.removeprefix("private/"): _joined(parts, k)[place] for k in _under(parts[0], "private/")}
    bases: dict[int, Arrays] = {}
    for part in parts:
        for k in _under(part, "base/"):
            _, round_, name = k.split("/", 2)
            bases.setdefault(int(round_), {})[name] = part[k]
    tuned = _tuned_of(parts, place) if "tuned/ptr" in parts[0] else None
    return ClientStore(private, _joined(parts, "last_round")[place], tuned, bases)


def _tuned_of(parts: Sequence[Arrays], place: np.ndarray) -> TunedRows:
    lengths = np.concatenate([np.diff(p["tuned/ptr"]) for p in parts])
    ptr = np.concatenate([[0], np.cumsum(lengths)])
    take = flat_index(ptr, place)
    return TunedRows(
        np.concatenate([[0], np.cumsum(lengths[place])]),
        _joined(parts, "tuned/rows")[take],
        {k.rsplit("/", 1)[1]: _joined(parts, k)[take] for k in _under(parts[0], "tuned/values/")},
        {k.rsplit("/", 1)[1]: _joined(parts, k)[place] for k in _under(parts[0], "tuned/scale/")},
    )


def _under(part: Arrays, prefix: str) -> list[str]:
    return sorted(k for k in part if k.startswith(prefix))


def _joined(parts: Sequence[Arrays], name: str) -> np.ndarray:
    return np.concatenate([p[name] for p in parts])
