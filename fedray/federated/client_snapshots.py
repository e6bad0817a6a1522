"""Clients between two rounds as named arrays: what a checkpoint holds of them, written by whoever has them.

Of stores that are one object (that of the best round and the last, say) one copy is written. Reading gives the same
bits back, for any other distribution of the clients on hosts.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from fedray.errors import DataError
from fedray.federated import client_store
from fedray.federated.client_store import ClientStore
from fedray.federated.clients import ClientHost
from fedray.storage import Storage, Written
from fedray.types import Arrays

CLIENT, ROUND = "client", "round"
_AT, _CURRENT, _BEST, _ALSO = "at/", "current", "best", "also/"


def of_host(host: ClientHost) -> Arrays:
    """The state of a host's clients: the stores of this round, of the best one and of other kept ones."""
    stores = {_CURRENT: host.store, _BEST: host.best, **{_ALSO + k: v for k, v in host.also.items()}}
    different = distinct(list(stores.values()))
    out = {CLIENT: host.data.client, ROUND: np.array([host.round])}
    out |= {f"{_AT}{n}": np.array([at]) for n, at in zip(stores, places(list(stores.values()), different))}
    for i, store in enumerate(different):
        out |= {f"{i}/{k}": v for k, v in client_store.to_arrays(store).items()}
    return out


def host_of(host: ClientHost, parts: Sequence[Arrays]) -> ClientHost:
    """`host` with the state of its clients as written, wherever the parts have them."""
    mine = [p for p in parts if np.isin(p[CLIENT], host.data.client).any()]
    if not mine:
        raise DataError(f"no state of clients {host.data.client[:5].tolist()}", "the clients that were saved")
    made: dict[tuple[int, ...], ClientStore] = {}

    def store(name: str) -> ClientStore:
        at = tuple(int(p[_AT + name][0]) for p in mine)
        if at not in made:
            own = [{CLIENT: p[CLIENT], **under(p, f"{i}/")} for p, i in zip(mine, at, strict=True)]
            made[at] = client_store.from_files(own, host.data.client)
        return made[at]

    also = {k: store(_ALSO + k) for k in under(mine[0], _AT + _ALSO)}
    round_ = int(mine[0][ROUND][0])
    return replace(host, store=store(_CURRENT), best=store(_BEST), also=also, round=round_, trained=None)


def written(host: ClientHost, folder: Storage, part: int) -> Written:
    """The host's state as a file in `folder`. Raises `OSError`."""
    return folder.write(f"clients-{part:05d}.safetensors", save(of_host(host)))


def read(host: ClientHost, folder: Storage, files: Sequence[Written]) -> ClientHost:
    """`host_of` these files."""
    return host_of(host, [load(folder.read(f.name, f.sha256)) for f in files])


def distinct(objects: Sequence[Any]) -> list[Any]:
    """Each object once, in order."""
    return list({id(o): o for o in objects}.values())


def places(objects: Sequence[Any], among: Sequence[Any]) -> list[int]:
    """Where each object is among those."""
    place = {id(o): i for i, o in enumerate(among)}
    return [place[id(o)] for o in objects]


def under(arrays: Arrays, prefix: str) -> dict[str, Any]:
    """What is below a name; numbers without an axis as numbers."""
    found = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
    return {k: v[()] if v.ndim == 0 else v for k, v in found.items()}
