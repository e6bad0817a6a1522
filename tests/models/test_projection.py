"""Where projections start: principal axes."""

import numpy as np
import pytest

from fedray.models.projection import axes

RNG = np.random.default_rng(0)
EVERY = np.ones(200, bool)


def content() -> np.ndarray:
    """200 rows of 6 numbers, of spread 4, 2, 1 along three rotated axes, centred."""
    rotation = np.linalg.qr(RNG.standard_normal((6, 6)))[0][:3]
    table = (RNG.standard_normal((200, 3)) * [4.0, 2.0, 1.0]) @ rotation
    return (table - table.mean(axis=0)).astype(np.float32)


def test_by_hand():
    table = np.array([[3, 0], [-3, 0], [0, 1], [0, -1]], np.float32)  # variances 4.5 and 0.5 along the axes
    found = axes(table, np.ones(4, bool), 2, whiten=False)
    np.testing.assert_allclose(found, np.eye(2) / np.sqrt(2.5), atol=1e-6)
    np.testing.assert_allclose(axes(table, np.ones(4, bool), 2, whiten=True), np.diag([4.5**-0.5, 2**0.5]), atol=1e-6)


def test_widest_first_with_mean_square_one():
    table = content()
    projected = table @ axes(table, EVERY, 3, whiten=False).T
    spread = (projected**2).mean(axis=0)
    assert np.mean(spread) == pytest.approx(1.0, rel=1e-5)
    assert spread[0] > spread[1] > spread[2]
    cross = projected.T @ projected / 200
    np.testing.assert_allclose(cross, np.diag(np.diag(cross)), atol=1e-4)


def test_whitened_axes_count_alike():
    table = content()
    projected = table @ axes(table, EVERY, 3, whiten=True).T
    np.testing.assert_allclose(projected.T @ projected / 200, np.eye(3), atol=1e-4)


@pytest.mark.parametrize("whiten", [False, True])
def test_no_more_axes_than_the_content_has(whiten):
    found = axes(content(), EVERY, 5, whiten)
    assert np.all(found[3:] == 0) and np.all(np.linalg.norm(found[:3], axis=1) > 0)
    assert not axes(np.zeros((200, 6), np.float32), EVERY, 4, whiten).any()


def test_absent_rows_have_no_say():
    table, present = content(), EVERY.copy()
    present[50:] = False
    noisy = np.where(present[:, None], table, 100.0).astype(np.float32)
    assert np.array_equal(axes(table, present, 3, False), axes(noisy, present, 3, False))
    assert axes(table, ~EVERY, 3, False).shape == (3, 6)
