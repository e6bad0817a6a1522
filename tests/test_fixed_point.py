"""Values on the 2^-32 grid."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray import fixed_point
from fedray.errors import AggregateOverflowError

LARGEST = 2.0**30


def test_values_by_hand():
    assert fixed_point.quantise(np.array([0.0, 1.0, -1.0, 0.25])).tolist() == [0, 2**32, -(2**32), 2**30]
    assert fixed_point.restore(np.array([2**32, -(2**31), 1])).tolist() == [1.0, -0.5, 2.0**-32]


def test_halves_go_to_the_even_neighbour():
    assert fixed_point.quantise(np.array([0.5, 1.5, 2.5, -0.5, -1.5]) * 2.0**-32).tolist() == [0, 2, 2, 0, -2]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), max_size=8))
def test_the_error_is_at_most_half_a_step(xs):
    x = np.array(xs, dtype=np.float64)
    assert np.all(np.abs(fixed_point.restore(fixed_point.quantise(x)) - x) <= 2.0**-33 + np.abs(x) * 2.0**-53)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-(2**50), 2**50), max_size=8))
def test_grid_numbers_survive_a_round_trip(qs):
    q = np.array(qs, dtype=np.int64)
    assert fixed_point.quantise(fixed_point.restore(q)).tolist() == qs


@pytest.mark.parametrize("bad", [LARGEST, -LARGEST, np.inf, -np.inf, np.nan, 1e200])
def test_what_does_not_fit_is_the_named_error(bad):
    with pytest.raises(AggregateOverflowError, match="lower backbone.lr"):
        fixed_point.quantise(np.array([0.0, bad]))


def test_the_largest_value_that_fits():
    just_below = np.nextafter(LARGEST, 0)
    assert fixed_point.quantise(np.array([just_below, -just_below])).tolist() == [2**62 - 2**9, -(2**62) + 2**9]


def test_a_peak_is_refused_from_the_limit_on():
    assert fixed_point.check(2**62 - 1) == 2**62 - 1
    with pytest.raises(AggregateOverflowError):
        fixed_point.check(2**62)


def test_nothing_is_quantised_to_nothing():
    assert fixed_point.quantise(np.zeros((0, 3))).shape == (0, 3)
