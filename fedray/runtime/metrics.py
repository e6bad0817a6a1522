"""What Prometheus sees of a run: `ray_fedray_...` on the metrics port of the driver actor's node.

No tag names a client or a round: they would be as many series. `run` is the run's id.
"""

from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge, Histogram

from fedray.types import RoundReport

SECONDS = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0]


class RunMetrics:
    """Counts the rounds of one run."""

    def __init__(self, run_id: str) -> None:
        self._run, self._restarts = {"run": run_id}, 0
        own = ("run",)
        self._seconds = Histogram(
            "fedray_round_seconds", "by stage of a round; stage=round: all of it", SECONDS, ("run", "stage")
        )
        self._clients = Counter("fedray_clients_total", "client rounds: ok, dropped, rejected", (*own, "outcome"))
        self._bytes = Counter("fedray_bytes_total", "what would travel between server and clients", (*own, "dir"))
        self._abandoned = Counter("fedray_rounds_abandoned_total", "rounds with too few clients left", own)
        self._restarted = Counter("fedray_actor_restarts_total", "actors that were lost and made again", own)
        self._round = Gauge("fedray_round", "rounds done", own)

    def note(self, report: RoundReport) -> None:
        """One round."""
        for stage, seconds in report.seconds.items():
            self._seconds.observe(seconds, {**self._run, "stage": stage})
        self._add(self._clients, "outcome", _outcomes(report))
        self._add(self._bytes, "dir", {"down": report.bytes_down, "up": report.bytes_up})
        if report.abandoned:
            self._abandoned.inc(report.abandoned, self._run)
        if (more := report.restarts - self._restarts) > 0:
            self._restarted.inc(more, self._run)
        self._restarts = report.restarts
        self._round.set(report.round, self._run)

    def _add(self, counter: Counter, tag: str, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if value > 0:
                counter.inc(value, {**self._run, tag: name})


def _outcomes(report: RoundReport) -> dict[str, float]:
    return {"ok": report.clients_ok, "dropped": report.clients_dropped, "rejected": report.clients_rejected}
