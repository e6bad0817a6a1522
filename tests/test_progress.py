"""Signals, whoever they meet: the same end. And what a resumed run's lines say."""

import os
import signal
from contextlib import suppress
from io import StringIO

import pytest
from rich.console import Console

from fedray.errors import StoppedBetweenRounds, Terminated
from fedray.progress import Progress, one_by_one, signals_heard, signals_raise
from fedray.status_line import parse_round
from fedray.types import RoundReport
from tests.helpers import FCF, tiny_config


def compiled_code(error):
    """What Cython makes of an exception that a handler raised in the midst of it."""
    try:
        raise error
    except BaseException as cause:
        raise SystemError("returned a result with an exception set") from cause


def test_a_signal_within_compiled_code_is_a_signal():
    with pytest.raises(Terminated), signals_heard():
        compiled_code(Terminated())
    with pytest.raises(Terminated), signals_raise():
        compiled_code(Terminated())


def test_what_else_goes_wrong_there_is_not_one():
    with pytest.raises(SystemError, match="exception set"), signals_heard():
        compiled_code(ValueError("no"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_waits_where_it_should_and_the_second_does_not(number):
    before = signal.getsignal(number)
    with pytest.raises(Terminated), signals_raise() as stop:
        with stop.later():
            os.kill(os.getpid(), number)
            assert stop.asked
            os.kill(os.getpid(), number)
        raise AssertionError("the second was not heard")
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("where", ["in a round", "after it", "in the last", "after the last"])
def test_a_signal_ends_a_run_between_two_rounds_with_what_is_done_with_a_round_done(where):
    done = []

    def rounds():
        for n in range(3):
            if (where, n) in (("in a round", 1), ("in the last", 2)):
                os.kill(os.getpid(), signal.SIGTERM)
            yield n

    with pytest.raises(StoppedBetweenRounds), signals_raise() as stop:
        for n in one_by_one(rounds(), stop):
            if (where, n) in (("after it", 1), ("after the last", 2)):
                os.kill(os.getpid(), signal.SIGTERM)
            done.append(n)
    assert done == ([0, 1, 2] if "last" in where else [0, 1])


def test_what_fails_with_a_round_leaves_signals_as_they_were():
    with pytest.raises(Terminated), signals_raise() as stop:
        with suppress(ValueError):
            for _ in one_by_one(iter(range(3)), stop):
                raise ValueError
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the signal was put off")


def test_a_resumed_run_remembers_its_best():
    lines = Console(file=StringIO(), width=200)
    progress = Progress(lines, tiny_config(FCF, {"rounds": 9}), {})
    for n, value in ((7, 0.3), (8, 0.2), (9, 0.25)):
        report = RoundReport(n, {"train/loss": 1.0, "val/ndcg_at_10": value}, {"round": 0.1}, 0, 0, 5, 0, 0)
        (progress.recall if n < 9 else progress.show)(report)
    (line,) = lines.file.getvalue().splitlines()
    assert parse_round(line).best == 0.3
