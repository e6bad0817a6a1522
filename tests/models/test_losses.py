"""The losses of one batch by hand, in numpy: means over what the mask leaves, pairs for BPR."""

import math

import numpy as np
import pytest
import torch

from fedray.models.losses import LOSSES, bce, bpr


def tensors(logit, label, mask):
    return torch.tensor(logit, dtype=torch.float32), torch.tensor(label, dtype=torch.float32), torch.tensor(mask)


def log1p_exp(x):
    return np.logaddexp(0.0, np.asarray(x, np.float64))


def test_bce_by_hand():
    """Logits 0 and log 3 with labels 1 and 0: log 2 and log 4; their mean is 1.5 log 2."""
    found = bce(*tensors([0.0, math.log(3)], [1, 0], [True, True]))
    assert found.item() == pytest.approx(1.5 * math.log(2), rel=1e-6)


def test_bpr_by_hand():
    """Differences log 3 and -log 3: sigmoids 3/4 and 1/4, so log(4/3) and log 4."""
    found = bpr(*tensors([math.log(3), 0.0, 1.0, 1.0 + math.log(3)], [1, 0, 1, 0], [True] * 4))
    assert found.item() == pytest.approx((math.log(4 / 3) + math.log(4)) / 2, rel=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_both_against_numpy_under_masks(seed):
    rng = np.random.default_rng(seed)
    x, pairs = rng.normal(scale=4, size=24), rng.random(12) < 0.6
    y, mask = np.arange(24) % 2 == 0, np.repeat(pairs, 2)
    each = log1p_exp(x) - y * x
    assert bce(*tensors(x, y, mask)).item() == pytest.approx(each[mask].mean(), rel=1e-5)
    assert bpr(*tensors(x, y, mask)).item() == pytest.approx(log1p_exp(x[1::2] - x[::2])[pairs].mean(), rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_masked_places_have_no_say_whatever_they_hold(name):
    """Padding at the end, odd in number: the value and every gradient are those of the batch without it."""
    x, y, mask = tensors([0.3, -1.0, 2.0, 0.5, 7.0, -9.0, 5.0], [1, 0, 1, 0, 1, 0, 1], [True] * 4 + [False] * 3)
    x.requires_grad_()
    short = x[:4].detach().clone().requires_grad_()
    whole, part = LOSSES[name](x, y, mask), LOSSES[name](short, y[:4], mask[:4])
    assert whole.item() == part.item()
    whole.backward()
    part.backward()
    assert x.grad.tolist() == [*short.grad.tolist(), 0.0, 0.0, 0.0]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("n", [0, 1, 2, 8])
def test_an_empty_mask_is_zero_with_zero_gradients(name, n):
    x = torch.full((n,), 3.0, requires_grad=True)
    found = LOSSES[name](x, torch.ones(n), torch.zeros(n, dtype=torch.bool))
    assert found.item() == 0.0
    found.backward()
    assert x.grad.tolist() == [0.0] * n


@pytest.mark.parametrize("name", LOSSES)
def test_far_logits_stay_finite_and_keep_their_gradient(name):
    """Wrong by 200: the loss is 200 (BPR: 400), the gradient at its largest, not 0 as after a rounded sigmoid."""
    x = torch.tensor([-200.0, 200.0], requires_grad=True)
    found = LOSSES[name](x, torch.tensor([1.0, 0.0]), torch.tensor([True, True]))
    found.backward()
    assert found.item() == {"bce": 200.0, "bpr": 400.0}[name]
    assert x.grad.tolist() == {"bce": [-0.5, 0.5], "bpr": [-1.0, 1.0]}[name]


def test_bpr_reads_no_label():
    logit, label, mask = tensors([1.0, 2.0, 3.0, 4.0], [1, 0, 1, 0], [True] * 4)
    assert bpr(logit, label, mask) == bpr(logit, 1 - label, mask)
