"""A run's checkpoints: the server's state and the clients', each round's in a folder of its own, whole or not there.

<path>/<run id>/round-000010/manifest.json              round, identity of the run, files with sha256; written last
<path>/<run id>/round-000010/server.safetensors         parameters and whatever else the server has as arrays
<path>/<run id>/round-000010/run.json                   the rest of it
<path>/<run id>/round-000010/clients-00000.safetensors  private state, one file per actor, written by that actor
<path>/<run id>/reports/000001-000010.json              what the rounds since the checkpoint before said

safetensors and JSON, no pickle. A folder is made aside, its files fsynced, then renamed (`fedray.storage`). What is
torn is found by its sha256 and skipped for the one before.
"""

import json
import platform
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any, Literal, NamedTuple

from safetensors.numpy import load, save

from fedray.config import ELSEWHERE, RunConfig, flatten
from fedray.errors import BeforeChangeError, CheckpointError, FedrayWarning, ResumeError
from fedray.federated.run_snapshots import Snapshot
from fedray.storage import Storage, Written
from fedray.types import RoundReport

FORMAT = 1
MANIFEST, SERVER, REST, REPORTS, PREFIX = "manifest.json", "server.safetensors", "run.json", "reports", "round-"


class Identity(NamedTuple):
    """What a run is. settings: flat, for a message that says what differs. environment: what bits may depend on."""

    run_id: str
    fingerprint: str
    data: str
    settings: Mapping[str, Any]
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Checkpoint:
    """One that is there and whole."""

    round: int
    folder: Storage
    files: tuple[Written, ...]

    @property
    def clients(self) -> tuple[Written, ...]:
        """The files of client state."""
        return tuple(f for f in self.files if f.name.startswith("clients-"))

    def server(self) -> Snapshot:
        """The server's part."""
        by_name = {f.name: f.sha256 for f in self.files}
        arrays = load(self.folder.read(SERVER, by_name[SERVER]))
        return Snapshot(arrays, json.loads(self.folder.read(REST, by_name[REST])))


@dataclass(frozen=True)
class Checkpoints:
    """Those of one run."""

    storage: Storage
    identity: Identity
    every: int | Literal["auto"]
    keep: int
    last: bool = True
    """Also one of the last round, for a run that may be asked for again."""
    since: int = 0
    """The settings are those from this round on: older ones are of others."""

    def aside(self, round_: int) -> Storage:
        """Where the files of a checkpoint are written; what deaths left of others, or there, goes first."""
        name = self.storage.aside(_folder(round_))
        for left in (name, *[n for n in self.storage.names() if n.startswith(f".{PREFIX}")]):
            self.storage.remove(left)
        return self.storage.under(name)

    def give_up(self, round_: int) -> None:
        """What there is of a checkpoint that cannot be written goes: it may be what fills the disk."""
        with suppress(OSError):
            self.storage.remove(self.storage.aside(_folder(round_)))

    def commit(
        self, round_: int, snapshot: Snapshot, clients: Sequence[Written], reports: Sequence[RoundReport]
    ) -> Checkpoint:
        """The checkpoint of a round whose client files are there; older ones go. reports: since the last one."""
        aside, name = self.storage.under(self.storage.aside(_folder(round_))), _folder(round_)
        missing = sorted({f.name for f in clients} - set(aside.names()))
        if missing:
            raise CheckpointError(
                f"{missing[0]} is not there: an actor on another node wrote it",
                "a folder that all nodes share",
                "Set runtime.checkpoint.path.",
                self.storage.url,
            )
        self._report(reports)
        own = [aside.write(SERVER, save(snapshot.arrays)), aside.write(REST, _json(snapshot.body))]
        self._publish(round_, (*clients, *own), self.identity.environment)
        try:
            self._forget(round_)
        except OSError as error:
            warnings.warn(f"old checkpoints in {self.storage.url} stay: {error}", FedrayWarning, stacklevel=2)
        return Checkpoint(round_, self.storage.under(name), (*clients, *own))

    def _report(self, reports: Sequence[RoundReport]) -> None:
        """In place of those that a checkpoint which never came to be has left of these rounds."""
        if not reports:
            return
        folder, first, last = self.storage.under(REPORTS), reports[0].round, reports[-1].round
        own = f"{first:06d}-{last:06d}.json"
        folder.write(own, _json([asdict(r) for r in reports]))
        for name in folder.names():
            if name != own and _first_of(name) >= first:
                folder.remove(name)

    def _publish(self, round_: int, files: Sequence[Written], made_in: Mapping[str, str]) -> None:
        own = self.identity._replace(environment=made_in)
        body = {"format": FORMAT, "round": round_, **own._asdict(), "files": [f._asdict() for f in files]}
        self.storage.under(self.storage.aside(_folder(round_))).write(MANIFEST, _json(body))
        self.storage.publish(_folder(round_))

    def newest(self) -> Checkpoint | None:
        """The last one that is whole and of this very run. Raises `ResumeError` where it is of another, and
        `BeforeChangeError`."""
        found = self._first_whole(self.storage, self._whole)
        if (found.round if found else 0) < self.since:
            raise BeforeChangeError(
                f"the newest whole checkpoint is of round {found.round if found else 0}", f"{self.since}"
            )
        return found

    def _first_whole(self, there: Storage, read: Callable[[Storage], Checkpoint]) -> Checkpoint | None:
        for name in reversed(_folders(there)):
            try:
                return read(there.under(name))
            except CheckpointError as error:
                warnings.warn(f"{there.url}/{name} is skipped: {error}", FedrayWarning, stacklevel=3)
        return None

    def adopt(self, parent: str) -> None:
        """Where this run has no checkpoint, the newest of another one that is the same until there: but for `changes`
        after it. Where that has none (any more), this one makes its rounds itself."""
        if self.last_round():
            return
        there = Storage(f"{self.storage.url.rsplit('/', 1)[0]}/{parent}")
        self._first_whole(there, lambda folder: self._copied(parent, folder))

    def _copied(self, parent: str, folder: Storage) -> Checkpoint:
        body, found = _read(folder)
        self._check_shared(parent, found.round, body)
        aside, said = self.aside(found.round), Storage(folder.url.rsplit("/", 1)[0]).under(REPORTS)
        for file in found.files:
            aside.write(file.name, folder.read(file.name, file.sha256))
        for name in said.names():
            if _last_of(name) <= found.round:
                self.storage.write(f"{REPORTS}/{name}", said.read(name))
        self._publish(found.round, found.files, body["environment"])
        return found

    def last_round(self) -> int:
        """Of the newest checkpoint, by its name; 0 where there is none. Whether it is whole, `newest` says."""
        return max(map(_round, _folders(self.storage)), default=0)

    def reports(self, until: int) -> list[RoundReport]:
        """What the rounds up to that one said; what later ones said is removed."""
        folder, found = self.storage.under(REPORTS), list[RoundReport]()
        for name in folder.names():
            if _last_of(name) > until:
                folder.remove(name)
            else:
                found += [RoundReport(**r) for r in json.loads(folder.read(name))]
        return found

    def clear(self) -> None:
        """All of the run goes."""
        parent, name = self.storage.url.rsplit("/", 1)
        Storage(parent).remove(name)

    def _forget(self, round_: int) -> None:
        """All but the newest; a later one than this was torn, or this round would not have come again."""
        there = _folders(self.storage)
        later = [n for n in there if _round(n) > round_]
        for name in (*later, *[n for n in there if n not in later][: -self.keep]):
            self.storage.remove(name)

    def _whole(self, folder: Storage) -> Checkpoint:
        body, found = _read(folder)
        self._check(body)
        for file in found.files:
            folder.read(file.name, file.sha256)
        return found

    def _check_shared(self, parent: str, round_: int, body: Mapping[str, Any]) -> None:
        there, here = body["settings"], self.identity.settings
        differ = sorted(k for k in {*there, *here} if there.get(k) != here.get(k))
        ours = [k for k in differ if k.partition(".")[0] not in ELSEWHERE]
        until_there = [k for k in ours if not k.startswith("changes.") or int(k.split(".")[1]) < round_]
        if until_there or body["data"] != self.identity.data:
            text = ", ".join(until_there) or "the data or the items' features"
            raise ResumeError(
                f"run {parent} is another one until round {round_}: {text} differ", "the same until there"
            )

    def _check(self, body: Mapping[str, Any]) -> None:
        mine, run = self.identity, self.identity.run_id
        if body["data"] != mine.data:
            raise ResumeError(
                f"run {run} was made with other data, or other features of its items",
                "the same",
                "Give it another --run-id.",
            )
        if body["fingerprint"] != mine.fingerprint:
            there, here = body["settings"], mine.settings
            keys = sorted(k for k in {*there, *here} if there.get(k) != here.get(k))
            differ = ", ".join(f"{k} {there.get(k)!r} there, {here.get(k)!r} here" for k in keys[:5])
            raise ResumeError(
                f"run {run} was started with other settings: {differ}", "the same", "Give it another --run-id."
            )
        changed = sorted(k for k, v in mine.environment.items() if body["environment"].get(k) != v)
        if changed:
            was = ", ".join(f"{k} {body['environment'].get(k)} -> {mine.environment[k]}" for k in changed)
            text = f"run {run} goes on elsewhere ({was}): the last bits may differ from an undisturbed run's"
            warnings.warn(text, FedrayWarning, stacklevel=2)


class Go(NamedTuple):
    """Which run this is. run_id: empty for one of its own, whose checkpoints go when it ends well. resume: it may go on
    from a checkpoint. family: whose seed it is, by the family's run id; None: nobody's."""

    run_id: str = ""
    resume: bool = False
    family: str | None = None

    def of_seed(self, seed: int) -> "Go":
        """The run of one seed of a family."""
        return Go(f"{self.run_id}-s{seed}" if self.run_id else "", self.resume, self.run_id)

    def how(self, own: str) -> str:
        """What to add to the command to go on. own: the run's id."""
        if self.family == "":
            return "a --run-id from the start (without one, seeds begin anew)"
        return f"--run-id {self.family or own} --resume-or-start"


NEW = Go()


def opened(config: RunConfig, data: str, device: str, go: Go) -> Checkpoints | None:
    """A run's checkpoints, if it is to leave any. Raises `ResumeError` where there are some and it is not to go on."""
    wanted = config.runtime.checkpoint
    if not wanted.every:
        if go.resume:
            raise ResumeError("runtime.checkpoint.every is 0", "checkpoints to go on from")
        return None
    run_id = go.run_id or uuid.uuid4().hex[:12]
    identity = Identity(run_id, config.fingerprint(), data, flatten(config), environment(device))
    place = Storage.at(wanted.path).under(run_id)
    found = Checkpoints(place, identity, wanted.every, wanted.keep, bool(go.run_id))
    if not go.resume and go.run_id and (last := found.last_round()):
        raise ResumeError(
            f"run {run_id} is there already, up to round {last}",
            "another --run-id, or --resume-or-start to go on with it",
            where=found.storage.url,
        )
    return found


def environment(device: str) -> dict[str, str]:
    """What the last bits of a result may depend on beside the configuration."""
    import torch

    names = ("numpy", "torch", "numba", "scikit-learn", "scipy")
    chip = {"machine": platform.machine(), "device": device, "cpu": torch.backends.cpu.get_cpu_capability()}
    return chip | {f"{name}": version(name) for name in names}


def _folders(there: Storage) -> list[str]:
    return [n for n in there.names() if n.startswith(PREFIX)]


def _read(folder: Storage) -> tuple[Mapping[str, Any], Checkpoint]:
    """A manifest, and the checkpoint that it says is there."""
    try:
        body = json.loads(folder.read(MANIFEST))
        files = tuple(Written(**f) for f in body["files"])
        return body, Checkpoint(int(body["round"]), folder, files)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError("its manifest cannot be read", "JSON as written") from error


def _round(folder: str) -> int:
    return int(folder.removeprefix(PREFIX))


def _first_of(reports: str) -> int:
    return int(reports.split("-")[0])


def _last_of(reports: str) -> int:
    return int(reports.split("-")[1].removesuffix(".json"))


def _folder(round_: int) -> str:
    return f"{PREFIX}{round_:06d}"


def _json(body: Any) -> bytes:
    return json.dumps(body, indent=1).encode()
