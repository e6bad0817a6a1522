"""The line that a training prints for a round, and its way back: `fedray status` reads a job's log by it.

    round 12/100  loss 0.4120  ndcg_at_10 0.0810 (best 0.0822)  931 clients, 12 dropped, 1 restart  0.20 s  0:00:18 left

       8  trial 7  broken off at round 20  ndcg_at_10 0.0412 (best 0.0522 by trial 3)  1.2 s  backbone.lr=0.1

The second is what a sweep prints when a trial is over, the eighth here.
What is zero (dropped, rejected, restarts, abandoned) or unknown (a metric that was not measured this round) is not
printed.
"""

import re
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import NamedTuple


@dataclass(frozen=True)
class RoundStatus:
    """What a line says. `seconds` is the round's own time, `left_s` what is left of the run in whole seconds;
    `abandoned` are rounds of the run so far, as `restarts` are."""

    round: int
    rounds: int
    loss: float
    clients_ok: int
    seconds: float
    left_s: int
    metric: str = ""
    value: float | None = None
    best: float | None = None
    dropped: int = 0
    rejected: int = 0
    restarts: int = 0
    abandoned: int = 0


_FLOAT = r"(?:-?\d+\.\d+|-?inf|nan)"
_LINE = re.compile(
    r"round (?P<round>\d+)/(?P<rounds>\d+)"
    rf"  loss (?P<loss>{_FLOAT})"
    rf"(?:  (?P<metric>\w+) (?P<value>{_FLOAT}) \(best (?P<best>{_FLOAT})\))?"
    r"  (?P<clients_ok>[\d,]+) clients"
    r"(?:, (?P<dropped>[\d,]+) dropped)?"
    r"(?:, (?P<rejected>[\d,]+) rejected)?"
    r"(?:, (?P<restarts>[\d,]+) restarts?)?"
    r"(?:, (?P<abandoned>[\d,]+) rounds? abandoned)?"
    rf"  (?P<seconds>{_FLOAT}) s"
    r"  (?P<left>\d+:\d\d:\d\d) left"
)
_WHOLE = ("round", "rounds", "clients_ok", "dropped", "rejected", "restarts", "abandoned")


def quality(status: RoundStatus) -> str:
    """`loss 0.4120  ndcg_at_10 0.0810 (best 0.0822)`: short enough for 80 columns with bar and time."""
    loss = f"loss {status.loss:.4f}"
    return f"{loss}  {status.metric} {status.value:.4f} (best {status.best:.4f})" if status.metric else loss


def format_round(status: RoundStatus) -> str:
    """The line of a round; `parse_round` is its inverse."""
    restarts = "restart" if status.restarts == 1 else "restarts"
    given_up = "round abandoned" if status.abandoned == 1 else "rounds abandoned"
    counts = {"dropped": status.dropped, "rejected": status.rejected}
    counts |= {restarts: status.restarts, given_up: status.abandoned}
    clients = [f"{status.clients_ok:,} clients", *(f"{n:,} {what}" for what, n in counts.items() if n)]
    return (
        f"round {status.round}/{status.rounds}  {quality(status)}  {', '.join(clients)}  "
        f"{status.seconds:.2f} s  {clock(status.left_s)} left"
    )


def parse_round(line: str) -> RoundStatus | None:
    """What a line of a log says of a round; None for every other line."""
    found = _LINE.fullmatch(line.strip())
    if found is None:
        return None
    said = found.groupdict()
    whole = {name: int((said[name] or "0").replace(",", "")) for name in _WHOLE}
    value, best = (None if said[name] is None else float(said[name]) for name in ("value", "best"))
    left = seconds_of(said["left"])
    loss, seconds = float(said["loss"]), float(said["seconds"])
    return RoundStatus(
        **whole, loss=loss, seconds=seconds, left_s=left, metric=said["metric"] or "", value=value, best=best
    )


def last_round(log: str) -> RoundStatus | None:
    """The last round that a log tells of; a metric that it lacks is the one that was measured last."""
    found = [status for status in map(parse_round, log.splitlines()) if status]
    if not found or found[-1].metric:
        return found[-1] if found else None
    measured = next((s for s in reversed(found) if s.metric), found[-1])
    return replace(found[-1], metric=measured.metric, value=measured.value, best=measured.best)


class TrialStatus(NamedTuple):
    """How far a sweep is: trials that are over, and the best so far, "" and None before there is one."""

    ended: int
    best: str
    trial: int | None


_TRIAL = re.compile(
    r"(?P<ended>\d+)  trial \d+  (?:done|broken off|FAILED) at round \d+"
    rf"(?:  (?P<metric>\w+) {_FLOAT})?(?: \(best (?P<best>{_FLOAT}) by trial (?P<trial>\d+)\))?  .*"
)


def last_trial(log: str) -> TrialStatus | None:
    """The last trial that a log tells of; None where there is none."""
    for line in reversed(log.splitlines()):
        if found := _TRIAL.fullmatch(line.strip()):
            best, by = found["best"] or "", found["trial"]
            return TrialStatus(int(found["ended"]), best, int(by) if by else None)
    return None


def clock(seconds: float) -> str:
    """75 -> `0:01:15`; hours are not folded into days."""
    rest = timedelta(seconds=round(seconds) % 3600)
    return f"{round(seconds) // 3600}:{str(rest).partition(':')[2]}"


def seconds_of(text: str) -> int:
    """`0:01:15` -> 75: the inverse of `clock`."""
    hours, minutes, seconds = (int(part) for part in text.split(":"))
    return hours * 3600 + minutes * 60 + seconds
