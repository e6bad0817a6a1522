"""Signals, whoever they meet: the same end."""

import os
import signal

import pytest

from fedray.errors import Terminated
from fedray.progress import signals_heard, signals_raise


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
