"""The compiled losses against autograd on those of `models.losses`, in float64."""

import numpy as np
import pytest
import torch

from fedray.federated.kernels.losses import KINDS, errors_of, errors_toward
from fedray.federated.local import Soft
from fedray.federated.soft import entropy
from fedray.models.losses import LOSSES, divergence

SIZES = {"bce": [1, 2, 3, 5, 31, 64, 257, 2000], "bpr": [2, 4, 6, 32, 64, 258, 2000]}
CASES = [(kind, m) for kind, sizes in SIZES.items() for m in sizes]


def compiled(kind, x, y, want=True):
    """(summed loss, error of each logit) of a batch, in buffers longer than it."""
    m, room = len(x), len(x) + 7
    buffer, label = np.full(room, np.nan, np.float32), np.full(room, np.nan, np.float32)
    buffer[:m], label[:m] = x, y
    u, power = np.empty(room, np.float32), np.empty(room, np.int32)
    total = errors_of(KINDS[kind], buffer, label, u, power, m, want)
    assert np.isnan(buffer[m:]).all()  # nothing is written behind the batch
    return total, buffer[:m]


def by_autograd(kind, x, y):
    logit = torch.tensor(np.asarray(x, np.float64), requires_grad=True)
    loss = LOSSES[kind](logit, torch.tensor(np.asarray(y, np.float64)), torch.ones(len(x), dtype=torch.bool))
    loss.backward()
    return loss.item() * len(x), logit.grad.numpy()


def assert_same(kind, x, y):
    total, errors = compiled(kind, x, y)
    expected, grads = by_autograd(kind, x, y)
    assert total == pytest.approx(expected, rel=2e-6, abs=1e-6 * len(x))
    np.testing.assert_allclose(errors, grads, rtol=2e-6, atol=2e-7 / len(x))  # a sigmoid near 1, less 1


@pytest.mark.parametrize(("kind", "m"), CASES)
@pytest.mark.parametrize("scale", [0.01, 1.0, 10.0])
def test_value_and_errors_equal_autograd(kind, m, scale):
    rng = np.random.default_rng(m)
    x = (scale * rng.normal(size=m)).astype(np.float32)
    y = (rng.random(m) < 0.4).astype(np.float32) if kind == "bce" else np.arange(m) % 2 == 0
    assert_same(kind, x, y)


FAR = [0.0, -0.0, 1e-30, -1e-30, 20.0, -20.0, 86.9, -86.9, 87.1, -87.1, 104.0, -104.0, 1e4, -1e4, 1e30, -1e30]


@pytest.mark.parametrize("label", [0.0, 1.0])
@pytest.mark.parametrize("x", FAR)
def test_far_logits_under_bce(x, label):
    """To the resolution of a float32 beside 1: of a sigmoid near 1 the label is subtracted. Its small end is exact down
    to e^-87, where it stays."""
    total, errors = compiled("bce", [x], [label])
    expected, grads = by_autograd("bce", np.float32([x]), [label])
    assert total == pytest.approx(expected, rel=1e-6, abs=1e-7)
    assert errors == pytest.approx(grads, rel=1e-6, abs=2e-38 if label == 0 else 6e-8)


@pytest.mark.parametrize("gap", FAR)
def test_far_pairs_under_bpr(gap):
    total, errors = compiled("bpr", [gap, 0.0], [1, 0])
    expected, grads = by_autograd("bpr", np.float32([gap, 0.0]), [1, 0])
    assert total == pytest.approx(expected, rel=1e-6, abs=1e-7)
    assert errors == pytest.approx(grads, rel=1e-6, abs=6e-8)
    assert errors[0] == -errors[1]


@pytest.mark.parametrize("kind", KINDS)
def test_an_unwanted_loss_is_zero_and_changes_no_error(kind):
    x, y = np.float32([0.5, -1.0, 2.0, 3.0]), [1, 0, 1, 0]
    total, errors = compiled(kind, x, y, want=False)
    assert total == 0.0
    np.testing.assert_array_equal(errors, compiled(kind, x, y)[1])


@pytest.mark.parametrize("kind", KINDS)
def test_nan_stays_nan(kind):
    total, errors = compiled(kind, [np.nan, 1.0, 0.5, 0.25], [1, 0, 1, 0])
    assert np.isnan(total)
    assert np.isnan(errors[0])
    assert np.isfinite(errors[2:]).all()


def test_hundreds_of_wide_products_stay_finite():
    """The logarithms of a batch are taken as one of a product: of 5000 factors of 2 each."""
    assert compiled("bce", np.zeros(5000), np.zeros(5000))[0] == pytest.approx(5000 * np.log(2))


def toward(kind, x, y, q, strength, ratio=np.nan, ema=-1.0, want=True):
    """(summed loss, errors, ratio) of client 1 of 2, whose rows begin at 5; sample k is of its row m - 1 - k."""
    m = len(x)
    target = np.concatenate([np.full(5, np.nan), q[::-1]]).astype(np.float32)
    soft = Soft(target, entropy(target), np.float32([0, strength]), np.float32([0, ratio]), np.float32(ema))
    logit, label, at = np.float32(x).copy(), np.float32(y).copy(), np.arange(m)[::-1].copy()
    scratch = np.empty(m, np.float32), np.empty(m, np.int32)
    total = errors_toward(KINDS[kind], logit, label, *scratch, m, want, soft, 1, at, 5, np.empty(m, np.float32), 0.0)
    return total, logit, soft.ratio[1]


def soft_by_autograd(kind, x, y, q, strength):
    logit, q = torch.tensor(np.float64(x), requires_grad=True), np.float64(np.float32(q))
    mask, label = torch.ones(len(x), dtype=torch.bool), torch.tensor(np.float64(y))
    h = torch.tensor(q * np.log(q) + (1 - q) * np.log(1 - q))
    loss = LOSSES[kind](logit, label, mask) + strength * divergence(logit, torch.tensor(q), h, mask)
    loss.backward()
    return loss.item() * len(x), logit.grad.numpy()


X, Y, Q = np.float32([0.5, -1.5, 3.0, 0.0]), np.float32([1, 0, 1, 0]), np.float32([0.9, 0.2, 0.5, 1e-3])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strength", [0.3, 5.0])
def test_errors_with_soft_labels_equal_autograd(kind, strength):
    total, errors, _ = toward(kind, X, Y, Q, strength)
    expected, grads = soft_by_autograd(kind, X, Y, Q, strength)
    assert total == pytest.approx(expected, rel=2e-6)
    np.testing.assert_allclose(errors, grads, rtol=2e-6, atol=2e-7)
    unwanted = toward(kind, X, Y, Q, strength, want=False)
    np.testing.assert_array_equal(unwanted[1], errors)


@pytest.mark.parametrize("kind", KINDS)
def test_labels_that_say_what_the_logits_say_add_nothing(kind):
    total, errors, ratio = toward(kind, X, Y, 1 / (1 + np.exp(-X)), 1.0)
    plain = compiled(kind, X, Y)
    assert total == pytest.approx(plain[0], abs=1e-6)
    np.testing.assert_allclose(errors, plain[1], atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_without_strength_there_are_the_same_bits(kind):
    total, errors, ratio = toward(kind, X, Y, Q, 0.0, ema=0.9)
    plain = compiled(kind, X, Y)
    assert total == plain[0]
    np.testing.assert_array_equal(errors, plain[1])
    assert np.isnan(ratio)


@pytest.mark.parametrize("kind", KINDS)
def test_the_ratio_is_that_of_the_sums_and_moves_only_where_the_loss_is_wanted(kind):
    base = compiled(kind, X, Y)[0]
    term = toward(kind, X, Y, Q, 1.0)[0] - base
    assert toward(kind, X, Y, Q, 1.0, ema=0.9)[2] == pytest.approx(base / term, rel=1e-5)
    total, _, ratio = toward(kind, X, Y, Q, 0.5, ratio=2.0, ema=0.9)
    assert ratio == pytest.approx(0.9 * 2 + 0.1 * base / term, rel=1e-5)
    assert total == pytest.approx(base + 0.5 * ratio * term, rel=1e-5)
    assert toward(kind, X, Y, Q, 0.5, ratio=2.0, ema=0.9, want=False)[2] == 2.0
