"""What a sweep knows of its trials, a small file each, beside the checkpoints: what it goes on from after any failure.

<runtime.checkpoint.path>/<run id>/sweep.json        what the sweep is
                                   trials/0007.json  settings, state, how it went
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from fedray.errors import CheckpointError, ResumeError
from fedray.storage import Storage

FORMAT = 1
SWEEP, TRIALS = "sweep.json", "trials"
State = Literal["running", "finished", "pruned", "failed"]


@dataclass(frozen=True)
class TrialRecord:
    """One trial. value: its best validation metric, at round `best`; points: (round, best so far) at each validation;
    last: the metric at the last of them; seconds: that its process worked on it; parent: the trial whose first `begun`
    rounds are its own, too."""

    number: int
    settings: dict[str, Any]
    state: State = "running"
    value: float | None = None
    best: int = 0
    points: tuple[tuple[int, float], ...] = ()
    rounds: int = 0
    seconds: float = 0.0
    error: str = ""
    last: float | None = None
    parent: int | None = None
    begun: int = 0


@dataclass(frozen=True)
class Records:
    """Those of one sweep, in the folder `run_id` of `shelf`, where its trials' checkpoints are, too. `fingerprint` is
    the sweep's (`Sweep.fingerprint`), with that of its data; `text` the sweep as YAML."""

    shelf: Storage
    run_id: str
    fingerprint: str
    text: str = field(default="", repr=False)

    @property
    def storage(self) -> Storage:
        """Their folder."""
        return self.shelf.under(self.run_id)

    def open(self, resume: bool) -> list[TrialRecord]:
        """What is there. Raises `ResumeError` where there is a sweep and it is not to go on, or it is another one."""
        if SWEEP not in self.storage.names():
            body = {"format": FORMAT, "fingerprint": self.fingerprint, "sweep": self.text}
            self.storage.write(SWEEP, _json(body))
            return []
        if not resume:
            raise ResumeError(
                f"sweep {self.run_id} is there already",
                "another --run-id, or --resume-or-start to go on with it",
                where=self.storage.url,
            )
        there = json.loads(self.storage.read(SWEEP))
        if there["fingerprint"] != self.fingerprint:
            raise ResumeError(
                "the sweep was started with another job, space, search or scheduler, or with other data",
                "the same (its budget may differ)",
                "Give it another --run-id.",
                self.storage.url,
            )
        return self._all()

    def put(self, record: TrialRecord) -> None:
        """Written aside and renamed: whole or as before."""
        folder, name = self.storage.under(TRIALS), f"{record.number:05d}"
        folder.under(folder.aside(name)).write("trial.json", _json(asdict(record)))
        folder.publish(name)

    def forget(self, trial: str) -> None:
        """The checkpoints of a trial that is over."""
        self.shelf.remove(trial)

    def _all(self) -> list[TrialRecord]:
        folder = self.storage.under(TRIALS)
        return [_read(folder, name) for name in folder.names() if not name.startswith(".")]


def _read(folder: Storage, name: str) -> TrialRecord:
    try:
        body = json.loads(folder.under(name).read("trial.json"))
        points = tuple((int(r), float(v)) for r, v in body["points"])
        return TrialRecord(**{**body, "points": points, "settings": _numbered(body["settings"])})
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{name} cannot be read", "a trial as written", "Remove it to run it again.") from error


def _numbered(settings: dict[str, Any]) -> dict[str, Any]:
    """JSON has no numbers for keys: those of rounds."""
    changes = {int(r): v for r, v in settings.get("changes", {}).items()}
    return {**settings, "changes": changes} if changes else settings


def best_of(records: Sequence[TrialRecord]) -> TrialRecord | None:
    """The highest validation metric, of trials that were broken off, too; of equal ones that which went furthest, then
    the first."""
    told = [r for r in records if r.value is not None and r.state in ("finished", "pruned")]
    return max(told, key=lambda r: (r.value or 0.0, r.rounds, -r.number), default=None)


def _json(body: Any) -> bytes:
    return json.dumps(body, indent=1).encode()
