"""What clients keep between rounds: private parameters, their own tuned item rows, private item tables. Immutable: a
round makes a new store and shares what did not change, so keeping the best round's store costs a reference.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int

from fedray.errors import DataError
from fedray.federated.kernels.rows import count_union, gather_own, merge_own
from fedray.types import Arrays, flat_index

NEVER = -1
NOTHING: Mapping[str, Any] = MappingProxyType({})
_OWN = ("ptr", "rows", "values", "scale", "base")


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

    def untouched(self) -> "TunedRows":
        """The same tables before any training."""
        none = np.zeros(len(self.ptr), np.int64)
        values = {k: v[:0] for k, v in self.values.items()}
        return TunedRows(none, self.rows[:0], values, {k: np.ones(len(v)) for k, v in self.scale.items()})


@dataclass(frozen=True)
class OwnRows:
    """One private item table per client, as the rows it ever touched and a rule for the others.

    rows[ptr[c]:ptr[c+1]] (ascending) and values are client c's rows; every other row of its table is `scale[c]` times
    that row of `base` [M, d], where all clients started.
    """

    ptr: Int[np.ndarray, " clients_plus_1"]
    rows: Int[np.ndarray, " R"]
    values: Float32[np.ndarray, "R d"]
    scale: Float[np.ndarray, " clients"]
    base: Float32[np.ndarray, "M d"]

    @classmethod
    def untouched(cls, n_clients: int, base: Float32[np.ndarray, "M d"]) -> "OwnRows":
        """Clients whose table is `base`."""
        none = np.zeros((0, base.shape[1]), np.float32)
        return cls(np.zeros(n_clients + 1, np.int64), np.zeros(0, np.int32), none, np.ones(n_clients), base)

    def take(self, who: Int[np.ndarray, " k"], ptr: Int[np.ndarray, " k_plus_1"], rows: np.ndarray) -> np.ndarray:
        """The values of rows `rows[ptr[i]:ptr[i+1]]` (ascending) of client `who[i]`, flat [R, d]."""
        return gather_own(self.ptr, self.rows, self.values, self.scale, self.base, who, ptr, rows)

    def table(self, c: int) -> Float32[np.ndarray, "M d"]:
        """The whole table of one client."""
        out = self.base * np.float32(self.scale[c])
        own = slice(self.ptr[c], self.ptr[c + 1])
        out[self.rows[own]] = self.values[own]
        return out

    def updated(
        self, who: Int[np.ndarray, " k"], ptr: np.ndarray, rows: np.ndarray, values: np.ndarray, factor: np.ndarray
    ) -> "OwnRows":
        """After a round in which client `who[i]` trained `rows[ptr[i]:ptr[i+1]]`; its others shrank by factor[i]."""
        place = np.full(len(self.scale), -1)
        place[who] = np.arange(len(who))
        new = count_union(self.ptr, self.rows, place, ptr, rows)
        merged = merge_own(self.ptr, self.rows, self.values, place, ptr, rows, values, factor, new)
        return OwnRows(new, merged[0], merged[1], _put(self.scale, who, self.scale[who] * factor), self.base)


@dataclass(frozen=True)
class ClientStore:
    """State of C clients between rounds, columnar.

    last_round[c]: the round client c last trained in, NEVER before. `bases[r]` is the broadcast of round r, kept
    while some client's tuned rows refer to it. own: private item tables. whole: shared tables that the client keeps
    in full as it last trained them, [C, M, ...].
    """

    private: Arrays
    last_round: Int[np.ndarray, " clients"]
    tuned: TunedRows | None
    bases: Mapping[int, Arrays]
    own: Mapping[str, OwnRows] = field(default_factory=dict)
    whole: Arrays = field(default_factory=dict)


def fresh(
    private: Arrays,
    n_clients: int,
    tables: Mapping[str, Float[np.ndarray, "M ..."]],
    private_tables: Mapping[str, Float32[np.ndarray, "M d"]] = NOTHING,
    whole: Mapping[str, Float32[np.ndarray, "M d"]] = NOTHING,
) -> ClientStore:
    """Clients that never trained. `tables`: the tuned tables (their shapes matter; empty where the method tunes
    none); `private_tables` and `whole`: where all clients' private and whole tables start."""
    zero = np.zeros(0, np.int32)
    tuned = TunedRows(
        np.zeros(n_clients + 1, np.int64),
        zero,
        {k: np.zeros((0, *v.shape[1:]), v.dtype) for k, v in tables.items()},
        {k: np.ones(n_clients) for k in tables},
    )
    own = {k: OwnRows.untouched(n_clients, v) for k, v in private_tables.items()}
    full = {k: np.repeat(v[None], n_clients, axis=0) for k, v in whole.items()}
    return ClientStore(private, np.full(n_clients, NEVER), tuned if tables else None, {}, own, full)


def updated(
    store: ClientStore,
    who: Int[np.ndarray, " k"],
    round_: int,
    private: Arrays,
    tuned: TunedRows | None,
    base: Arrays,
    own: Mapping[str, OwnRows] = NOTHING,
    whole: Mapping[str, np.ndarray] = NOTHING,
) -> ClientStore:
    """`store` after the clients at positions `who` trained in `round_` from the broadcast `base`. own: the private
    tables as they are now, of all clients; whole [k, M, ...]: of those that trained."""
    last = _put(store.last_round, who, np.int64(round_))
    kept = {k: _put(v, who, private[k]) for k, v in store.private.items()}
    full = {k: whole[k] if len(who) == len(last) else _put(v, who, whole[k]) for k, v in store.whole.items()}
    store = replace(store, private=kept, last_round=last, own=own, whole=full)
    if store.tuned is None or tuned is None:
        return store
    used = {int(r): store.bases.get(int(r), base) for r in np.unique(last) if r != NEVER}
    return replace(store, tuned=store.tuned.updated(who, tuned), bases=used)


def untrained(store: ClientStore) -> ClientStore:
    """The clients with what is private and without their own copies of shared tables: scored from the broadcast, as
    those that never trained are."""
    none = np.full(len(store.last_round), NEVER)
    return replace(store, last_round=none, tuned=store.tuned and store.tuned.untouched(), bases={})


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
    out |= {f"own/{k}/{f}": getattr(v, f) for k, v in store.own.items() for f in _OWN}
    out |= {f"whole/{k}": v for k, v in store.whole.items()}
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
    own = {
        k.split("/")[1]: _own_of(parts, k.split("/")[1], place) for k in _under(parts[0], "own/") if k.endswith("ptr")
    }
    whole = {k.removeprefix("whole/"): _joined(parts, k)[place] for k in _under(parts[0], "whole/")}
    return ClientStore(private, _joined(parts, "last_round")[place], tuned, bases, own, whole)


def _own_of(parts: Sequence[Arrays], name: str, place: np.ndarray) -> OwnRows:
    lengths = np.concatenate([np.diff(p[f"own/{name}/ptr"]) for p in parts])
    take = flat_index(np.concatenate([[0], np.cumsum(lengths)]), place)
    rows, values, scale = (_joined(parts, f"own/{name}/{f}") for f in ("rows", "values", "scale"))
    ptr = np.concatenate([[0], np.cumsum(lengths[place])])
    return OwnRows(ptr, rows[take], values[take], scale[place], parts[0][f"own/{name}/base"])


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
