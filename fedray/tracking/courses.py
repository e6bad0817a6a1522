"""How runs went, round by round, and what that cost: what a report draws. Pure; where it was recorded plays no part."""

import re
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence

from fedray.tracking.records import Traffic, finite, round_metrics
from fedray.types import RoundReport

Points = Mapping[int, float]
"""Round -> value."""
Course = Mapping[str, Points]
"""Metric -> its points."""
Curve = tuple[list[float], list[float]]
"""x and y."""

LOSS, DOWN, UP, CLIENTS = "train/loss", "comm/total_mb_down", "comm/total_mb_up", "fed/clients_ok"
_STAGE = re.compile(r"time/(?!round_s$|total_s$)(.+)_s$")


def needed(name: str, metric: str) -> bool:
    """Whether a report by `val/<metric>` reads this metric."""
    return name in (LOSS, DOWN, UP, CLIENTS, f"val/{metric}") or bool(_STAGE.match(name))


def course_of(reports: Iterable[RoundReport]) -> Course:
    """Of a run that is still in memory, named as it is logged."""
    found: dict[str, dict[int, float]] = {}
    traffic = Traffic()
    for report in reports:
        traffic = traffic.plus(report)
        for name, value in finite(round_metrics(report, traffic))[0].items():
            found.setdefault(name, {})[report.round] = value
    return found


def by_round(course: Course, name: str) -> Curve:
    """A metric against the round."""
    points = sorted(course.get(name, {}).items())
    return [float(x) for x, _ in points], [y for _, y in points]


def by_traffic(course: Course, name: str) -> Curve:
    """A metric against the MB sent so far, down and up."""
    down, up, points = (course.get(n, {}) for n in (DOWN, UP, name))
    rounds = sorted(down.keys() & up.keys() & points.keys())
    return [down[r] + up[r] for r in rounds], [points[r] for r in rounds]


def mean_course(courses: Sequence[Course]) -> Course:
    """Metric by metric over the rounds that all of them have: a seed that stopped early would bend the mean."""
    names = set.intersection(*(set(course) for course in courses)) if courses else set()
    return {name: _mean_points([course[name] for course in courses]) for name in names}


def _mean_points(parts: Sequence[Points]) -> Points:
    rounds = set.intersection(*(set(part) for part in parts))
    return {r: statistics.fmean(part[r] for part in parts) for r in sorted(rounds)}


def stage_seconds(course: Course) -> dict[str, float]:
    """Stage -> seconds over all rounds."""
    stages = {name: found[1] for name in course if (found := _STAGE.match(name))}
    return {stage: sum(course[name].values()) for name, stage in sorted(stages.items())}


def costs(course: Course, other: Mapping[str, float]) -> dict[str, float]:
    """What a run took, as far as it is known. other: the end's metrics that are of no split."""
    down, up = (course[n][max(course[n])] if course.get(n) else other.get(n) for n in (DOWN, UP))
    clients = course.get(CLIENTS, {}).values()
    found = {
        "rounds": float(max(course[LOSS])) if course.get(LOSS) else None,
        "selected round": other.get("best_round"),
        "clients a round": statistics.fmean(clients) if clients else None,
        "MB down": down,
        "MB up": up,
        "seconds in all": other.get("time/total_s"),
        **{f"{stage}, s": seconds for stage, seconds in stage_seconds(course).items()},
    }
    return {name: value for name, value in found.items() if value is not None}


def mean_costs(each: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Over seeds, of what all of them have."""
    common: Collection[str] = [n for n in each[0] if all(n in one for one in each)] if each else []
    return {name: statistics.fmean(one[name] for one in each) for name in common}
