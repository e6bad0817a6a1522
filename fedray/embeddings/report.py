"""How a feature came about: what was encoded, what was there, what could not be had and why."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedray.embeddings.content import Content
from fedray.encoders import Problem

Troubles = Mapping[str, tuple[tuple[str, str], ...]]


@dataclass(frozen=True)
class FeatureReport:
    """One feature of a catalogue.

    encoded: distinct contents encoded by this job; stored: found in the store; by_others: made by other jobs meanwhile;
    damaged, torn: rows and segments of the store found unsound. problems: kind -> (item id, detail) of the items
    without the feature. items_per_s: contents encoded, after the first batch where there are more. seconds: `own`
    (looking, reading, hashing), `start` (until the first batch was done) and `encode` (from there on).
    """

    feature: str
    encoder: str
    fingerprint: str
    dim: int
    items: int
    present: int
    encoded: int = 0
    stored: int = 0
    by_others: int = 0
    damaged: int = 0
    torn: int = 0
    restarts: int = 0
    actors: int = 0
    items_per_s: float = 0.0
    problems: Troubles = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def hit_rate(self) -> float:
        """Share of the distinct contents that did not have to be encoded here."""
        distinct = self.encoded + self.stored + self.by_others
        return 1.0 - self.encoded / distinct if distinct else 0.0

    def line(self) -> str:
        """`text (transformers minilm): 1,671 of 1,682 items; 0 items encoded, 1,671 from the store, 0.31 s`."""
        others = f", {self.by_others:,} by other jobs" if self.by_others else ""
        start = f"{self.seconds.get('start', 0.0):.1f} s to start"
        rate = f" ({self.items_per_s:.1f}/s on {self.actors} actors, {start})" if self.encoded else ""
        lost = f", {self.restarts} lost actor{'s' * (self.restarts > 1)} replaced" if self.restarts else ""
        unsound = [(self.damaged, "damaged rows"), (self.torn, "torn segments")]
        torn = "".join(f", {n} {what} in the store passed over" for n, what in unsound if n)
        return (
            f"{self.feature} ({self.encoder}): {self.present:,} of {self.items:,} items; {items_encoded(self.encoded)}"
            f"{rate}, {self.stored:,} from the store{others}{torn}{lost}; own work {self.seconds['own']:.2f} s"
        )

    def summary(self) -> dict[str, Any]:
        """For scripts: stable keys."""
        troubles = {k: [{"item": i, "detail": d} for i, d in v] for k, v in self.problems.items()}
        plain = {k: v for k, v in vars(self).items() if k not in ("problems", "seconds")}
        return {**plain, "hit_rate": self.hit_rate, "seconds": dict(self.seconds), "problems": troubles}


def items_encoded(n: int) -> str:
    """`0 items encoded`, `1 item encoded`."""
    return f"{n:,} item{'s' * (n != 1)} encoded"


def troubles(content: Content, problems: Mapping[bytes, Problem]) -> Troubles:
    """Kind -> the items that have it, by their ids: for want of content, or because of what their content's key met."""
    found: dict[str, list[tuple[str, str]]] = {}
    by_id = sorted(range(len(content.ids)), key=lambda i: (len(content.ids[i]), content.ids[i]))
    for i in by_id:
        item, key, problem = content.ids[i], content.keys[i], content.problems[i]
        problem = problem or (problems.get(key) if key is not None else None)
        if problem is not None:
            found.setdefault(problem.kind, []).append((item, problem.detail))
    return {kind: tuple(found[kind]) for kind in sorted(found)}
