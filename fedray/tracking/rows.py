"""Recorded runs as the rows of a table: the runs of one configuration, a seed each."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fedray.errors import NothingToCompareError
from fedray.tracking.recorded import Recorded

NOT_COVERED = ("runtime.", "encoding.")
Identity = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Row:
    """One configuration: its runs, a seed each."""

    name: str
    runs: tuple[Recorded, ...]

    @property
    def protocol(self) -> str:
        """The protocol of all its runs."""
        return self.runs[0].protocol

    @property
    def data(self) -> str:
        """Fingerprint of the data of all its runs."""
        return self.runs[0].data_fingerprint

    def called(self) -> set[str]:
        """Everything the row or one of its runs goes by."""
        return {self.name, self.runs[0].method}.union(*(run.called for run in self.runs))


def usable(runs: Sequence[Recorded]) -> tuple[list[Recorded], list[str]]:
    """The finished runs, each once and each seed of a configuration once, and what was left out, in words."""
    once: dict[str, Recorded] = {}
    for run in runs:  # one may have been named twice, by its own id and by its family's
        called = once[run.run_id].called if run.run_id in once else frozenset()
        once[run.run_id] = replace(run, called=run.called | called)
    finished = [run for run in once.values() if run.status == "FINISHED"]
    newest = {(identity(run), run.seed): run.run_id for run in sorted(finished, key=lambda run: run.begun)}
    kept = [run for run in finished if run.run_id in newest.values()]
    if not kept:
        raise NothingToCompareError(f"none of {len(once)} runs is FINISHED", "finished runs")
    return kept, _left_out(list(once.values()), len(finished) - len(kept))


def identity(run: Recorded) -> Identity:
    """What makes two runs seeds of one row: what `config.fingerprint` covers, as it was recorded, less the seed; and
    the data, which may have changed under one path."""
    kept = {k: v for k, v in run.params.items() if k not in ("name", "seed") and not k.startswith(NOT_COVERED)}
    return tuple(sorted({**kept, "data": run.data_fingerprint}.items()))


def in_rows(runs: Sequence[Recorded]) -> list[Row]:
    """A row per configuration, in order of first appearance."""
    grouped: dict[Identity, list[Recorded]] = {}
    for run in runs:
        grouped.setdefault(identity(run), []).append(run)
    short = {key: f"{group[0].method} on {group[0].data}" for key, group in grouped.items()}
    return [Row(_told_apart(key, short), tuple(group)) for key, group in grouped.items()]


def _told_apart(key: Identity, short: dict[Identity, str]) -> str:
    """The row's short name; where another row has the same, with all settings in which such rows differ."""
    rivals = [dict(other) for other in short if short[other] == short[key]]
    names = sorted({name for rival in rivals for name in rival})
    differing = [name for name in names if len({rival.get(name) for rival in rivals}) > 1]
    return ", ".join([short[key], *(f"{name}={dict(key).get(name, 'none')}" for name in differing)])


def alike(rows: Sequence[Row]) -> bool:
    """Whether all rows have one protocol and one data set."""
    return len({(row.protocol, row.data) for row in rows}) == 1


def _left_out(runs: Sequence[Recorded], older: int) -> list[str]:
    counts = Counter(run.status for run in runs if run.status != "FINISHED")
    listed = ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))
    said = [f"left out, because not FINISHED: {listed}"] if counts else []
    return said + ([f"left out, because run again later with the same seed: {older}"] if older else [])
