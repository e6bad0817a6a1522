"""A round's line and its way back."""

import io
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fedray.progress import Progress
from fedray.search.records import TrialRecord
from fedray.search.report import trial_line
from fedray.status_line import (
    RoundStatus,
    TrialStatus,
    clock,
    format_round,
    last_round,
    last_trial,
    parse_round,
    seconds_of,
)
from fedray.types import RoundReport
from tests.helpers import tiny_config

count, cents = st.integers(0, 10**9), st.integers(0, 10**7).map(lambda n: n / 100)
score = st.integers(-(10**6), 10**6).map(lambda n: n / 10**4)
quality = st.tuples(st.just(""), st.none(), st.none()) | st.tuples(st.just("ndcg_at_10"), score, score)


@given(count, count, score, count, cents, count, quality, st.tuples(count, count, count, count))
def test_a_line_is_read_back_as_it_was_written(at, rounds, loss, ok, seconds, left, found, lost):
    status = RoundStatus(at, rounds, loss, ok, seconds, left, *found, *lost)
    assert parse_round(format_round(status)) == status


def test_a_line_by_hand():
    full = RoundStatus(12, 100, 0.41204, 9871, 3.1, 4000, "ndcg_at_10", 0.081, 0.0822, 129, 3, 1, 2)
    assert format_round(full) == (
        "round 12/100  loss 0.4120  ndcg_at_10 0.0810 (best 0.0822)  9,871 clients, 129 dropped, 3 rejected, 1 restart"
        ", 2 rounds abandoned  3.10 s  1:06:40 left"
    )
    bare = RoundStatus(1, 3, 0.5, 60, 0.02, 0)
    assert format_round(bare) == "round 1/3  loss 0.5000  60 clients  0.02 s  0:00:00 left"


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_is_read_back(odd):
    assert repr(parse_round(format_round(RoundStatus(1, 2, odd, 3, 0.1, 0))).loss) == repr(odd)


@pytest.mark.parametrize("line", ["", "round", "round 1/3  loss 0.5", "text: 3/60  1.0 items/s", "around 1/3"])
def test_other_lines_say_nothing_of_a_round(line):
    assert parse_round(line) is None


def test_the_last_round_of_a_log_has_the_metric_measured_last():
    measured, not_so = RoundStatus(1, 9, 0.5, 6, 0.1, 8, "hr_at_10", 0.3, 0.3), RoundStatus(2, 9, 0.4, 5, 0.1, 7)
    log = "\n".join(["plan", format_round(measured), format_round(not_so), "Traceback"])
    assert last_round(log) == RoundStatus(2, 9, 0.4, 5, 0.1, 7, "hr_at_10", 0.3, 0.3)
    assert last_round("nothing\nyet") is None


def test_how_far_a_sweep_is():
    """As the sweep itself prints it."""
    done = TrialRecord(0, {"backbone.lr": 0.1}, "finished", 0.25, 9, ((9, 0.25),), 9, 2.0)
    poor = replace(done, number=1, state="pruned", value=0.1, error="")
    failed = replace(done, number=2, state="failed", value=None, error="NonFiniteLossError: loss is nan")
    lines = [trial_line(failed, None, "ndcg_at_10", 1), trial_line(done, done, "ndcg_at_10", 2)]
    assert last_trial(lines[0]) == TrialStatus(1, "", None)
    assert last_trial("\n".join(["plan", *lines, "Traceback"])) == TrialStatus(2, "0.2500", 0)
    for record in (poor, failed):
        assert last_trial(trial_line(record, done, "ndcg_at_10", 3)) == TrialStatus(3, "0.2500", 0)
    assert last_trial("round 1/3\n 3 trials") is None


@given(count)
def test_clock_and_its_inverse(seconds):
    assert seconds_of(clock(seconds)) == seconds


def test_progress_prints_lines_that_are_read_back(monkeypatch):
    """A run resumed at round 3: its pace is that of the rounds since."""
    now = [100.0]
    monkeypatch.setattr("fedray.progress.time.monotonic", lambda: now[0])
    out = io.StringIO()
    config = tiny_config(train={"rounds": 10})
    with Progress(Console(file=out, width=40), config, {}) as progress:
        for at in (3, 4):
            now[0] += 4.0
            metrics = {"train/loss": 0.5, "val/ndcg_at_10": 0.1 * at}
            progress.show(RoundReport(at, metrics, {"round": 3.0}, 0, 0, 20, 2, 1, at, abandoned=1))
    first, second = map(parse_round, out.getvalue().splitlines())
    assert (first.left_s, second.left_s) == (21, 21)
    assert (second.clients_ok, second.dropped, second.rejected, second.restarts) == (20, 2, 1, 4)
    assert (first.abandoned, second.abandoned) == (1, 2)
    assert (second.value, second.best) == (0.4, 0.4)
