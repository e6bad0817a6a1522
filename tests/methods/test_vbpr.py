"""VBPR against plain autograd, and what stays where."""

import numpy as np
import pytest
import torch
from torch.nn.functional import softplus

from fedray.errors import UnsupportedError
from fedray.federated.clients import samples_of
from fedray.methods import build
from tests.helpers import executor, run, tiny_config, tiny_data, tiny_features

DATA = tiny_data(clients=3, items=30, longest=12)
FEATURES = tiny_features(30, text=6)
SETTINGS = {"operator_lr": 0.3, "gain": 0.7}


def config_of(backbone=None, **train):
    fcf = {"name": "fcf", "dim": 4, "lr": 0.2, "item_lr_scale": 0.5, **(backbone or {})}
    schedule = {"rounds": 1, "batch_size": 1000, "negatives": 2, "loss": "bpr", **train}
    return tiny_config({"backbone": fcf, "plugins": {"vbpr": SETTINGS}}, schedule)


@pytest.mark.parametrize("item_bias", [False, True])
def test_a_round_is_what_autograd_from_end_to_end_says(item_bias):
    config = config_of({"item_bias": item_bias})
    host = executor(config, DATA, features=FEATURES)._hosts[0]
    samples = samples_of(host, np.arange(3), 0)
    p = {k: torch.tensor(v, dtype=torch.float64, requires_grad=True) for k, v in host.method.init_server(0).items()}
    there = torch.from_numpy(FEATURES.present["text"].copy())
    x = torch.from_numpy(FEATURES.tables["text"].copy()).double()
    x = x - x[there].mean(0)
    x = x / x[there].square().mean().sqrt()
    projected = x @ p["operator/text/projection_weight"].T + p["operator/text/projection_bias"]
    projected = torch.where(there[:, None], projected, torch.zeros_like(projected))
    content = projected @ p["operator/content/output_weight"].T + p["operator/content/output_bias"]
    own = {k: torch.tensor(v[0], dtype=torch.float64) for k, v in host.method.init_clients(0, DATA.client).items()}
    losses = []
    for c in range(3):
        lo, hi = samples.sample_ptr[c], samples.sample_ptr[c + 1]
        item = torch.from_numpy(samples.rows[samples.row_ptr[c] : samples.row_ptr[c + 1]][samples.item[lo:hi]]).long()
        ids = p["item_embedding"][item]
        score = ids[:, :4] @ own["head_weight"] + content[item] @ own["content_weight"] + own["head_bias"]
        score = score + ids[:, 4] if item_bias else score
        losses.append(softplus(score[1::2] - score[::2]).mean())
    (sum(losses) / 3).backward()
    state = run(config, DATA, features=FEATURES)[0].state
    for k, leaf in p.items():
        rate = 0.2 * 30 * 0.5 if k == "item_embedding" else 0.3
        np.testing.assert_allclose(state.params[k], (leaf - rate * leaf.grad).detach().numpy(), atol=1e-6, err_msg=k)


def test_down_go_ids_and_the_content_half_and_nothing_else():
    method = build(config_of(), 30, FEATURES)
    down = method.down(method.init_server(0))
    assert {k: v.shape for k, v in down.items()} == {"item_embedding": (30, 4), "view/content": (30, 4)}
    assert set(method.private) == {"head_weight", "head_bias", "content_weight"}


def test_backbones_without_a_linear_head_are_refused():
    with pytest.raises(UnsupportedError, match="a linear head on shared rows"):
        build(tiny_config({"backbone": {"name": "fedncf", "dim": 4}, "plugins": {"vbpr": {}}}), 30, FEATURES)
