"""FedVLR against plain autograd from end to end, and by its laws."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from fedray.config import names_in
from fedray.errors import UnknownNameError, UnsupportedError
from fedray.federated import clients
from fedray.federated.aggregate import mean_deltas
from fedray.federated.clients import samples_of
from fedray.federated.cohort import EVERYONE
from fedray.federated.scoring import score_clients
from fedray.methods import build
from fedray.models.router import PARAMETERS, shares
from fedray.types import Broadcast, ItemFeatures
from tests.helpers import executor, run, tiny_config, tiny_data, tiny_features

DATA = tiny_data(clients=3, items=30, longest=12)
FEATURES = tiny_features(30)
FCF = {"name": "fcf", "dim": 4, "lr": 0.2, "item_lr_scale": 0.5}
SGD = {"operator_optimizer": "sgd", "operator_lr": 0.3, "router_dim": 5, "gain": 0.7, "residual": False}


def config_of(backbone=FCF, train=None, plugins=None, **settings):
    schedule = {"rounds": 1, "batch_size": 1000, "negatives": 2, **(train or {})}
    fedvlr = {**SGD, **settings}
    return tiny_config({"backbone": backbone, "plugins": {**(plugins or {}), "fedvlr": fedvlr}}, schedule)


# ---- the server's way back


def fused_by_hand(p, ids):
    """The three default views, as the papers draw them, in one graph."""
    content = {}
    for m in ("image", "text"):
        there = torch.from_numpy(FEATURES.present[m].copy())
        x = torch.from_numpy(FEATURES.tables[m].copy()).double()
        x = x - x[there].mean(0)
        x = x / x[there].square().mean().sqrt()
        projected = x @ p[f"operator/{m}/projection_weight"].T + p[f"operator/{m}/projection_bias"]
        content[m] = torch.where(there[:, None], projected, torch.zeros_like(projected))
    v, t = content["image"], content["text"]
    hidden = torch.relu(torch.cat([ids, v, t], 1) @ p["operator/mlp/hidden_weight"].T + p["operator/mlp/hidden_bias"])
    mlp = hidden @ p["operator/mlp/output_weight"].T + p["operator/mlp/output_bias"]
    gated = [
        x * torch.sigmoid(x @ p[f"operator/gate/gate_{k}_weight"].T + p[f"operator/gate/gate_{k}_bias"])
        for k, x in (("id", ids), ("image", v), ("text", t))
    ]
    gate = torch.cat(gated, 1) @ p["operator/gate/output_weight"].T + p["operator/gate/output_bias"]
    return [ids + v + t, mlp, gate]


def client_loss(views, own, item, label, weights):
    """One client's loss: router, mixture, linear head."""
    rows = [f[item] for f in views]
    hidden = torch.relu(torch.cat(rows, 1) @ own[PARAMETERS[0]].T + own[PARAMETERS[1]])
    w = torch.softmax(hidden @ own[PARAMETERS[2]].T + own[PARAMETERS[3]], 1)
    w = w.mean(0, keepdim=True) if weights == "client" else w
    z = sum(w[:, j : j + 1] * row for j, row in enumerate(rows))
    return bce(z @ own["head_weight"] + own["head_bias"], label)


@pytest.mark.parametrize("weights", ["client", "item"])
def test_the_server_moves_as_autograd_from_end_to_end_says(weights):
    config = config_of(weights=weights)
    where = executor(config, DATA, features=FEATURES)
    host, lr, item_lr = where._hosts[0], 0.2, 0.2 * 30 * 0.5
    samples = samples_of(host, np.arange(3), 0)
    start = host.method.init_server(config.seed)
    leaves = {k: torch.tensor(v, dtype=torch.float64, requires_grad=True) for k, v in start.items()}
    views = fused_by_hand(leaves, leaves["item_embedding"])
    routers = {k: v[0] for k, v in host.method.init_clients(config.seed, DATA.client).items()}
    losses, owns = [], []
    for c in range(3):
        own = {k: torch.tensor(v, dtype=torch.float64, requires_grad=True) for k, v in routers.items()}
        lo, hi = samples.sample_ptr[c], samples.sample_ptr[c + 1]
        rows = samples.rows[samples.row_ptr[c] : samples.row_ptr[c + 1]]
        item = torch.from_numpy(rows[samples.item[lo:hi]].astype(np.int64))
        losses.append(client_loss(views, own, item, torch.from_numpy(samples.label[lo:hi]).double(), weights))
        owns.append(own)
    (sum(losses) / 3).backward(retain_graph=True)
    state, _, _, where = run(config, DATA, features=FEATURES)
    for k, leaf in leaves.items():
        rate = item_lr if k == "item_embedding" else 0.3
        expected = (leaf - rate * leaf.grad).detach().numpy()
        np.testing.assert_allclose(state.state.params[k], expected, atol=1e-6, err_msg=k)
        assert leaf.grad.abs().max() > 0 or "bias" in k
    for c, own in enumerate(owns):
        grads = torch.autograd.grad(losses[c], list(own.values()), retain_graph=True)
        for (k, leaf), grad in zip(own.items(), grads):
            got = where._hosts[0].store.private[k][c]
            np.testing.assert_allclose(got, (leaf - lr * grad).detach().numpy(), atol=1e-6, err_msg=k)


def test_the_views_that_clients_train_on_do_not_move_within_a_round():
    """With head and router standing still, the steps of two epochs are twice those of one."""
    still = {**FCF, "lr": 0.0}

    def step(epochs):
        host = executor(config_of(still, train={"local_epochs": epochs}), DATA, features=FEATURES)._hosts[0]
        rates = host.method.phases
        moving = host.method._replace(phases=lambda r: tuple({**p, "view/sum": 1.0} for p in rates(r)))
        down = Broadcast(0, moving.down(moving.init_server(0)))
        total = clients.train(replace(host, method=moving), down, EVERYONE)[1].total
        return mean_deltas(total)["view/sum"]

    np.testing.assert_allclose(step(2), 2 * step(1), atol=1e-7)
    assert np.abs(step(1)).max() > 1e-3


# ---- laws


def test_shares_are_positive_and_sum_to_one():
    rng = np.random.default_rng(0)
    params = {k: torch.from_numpy(rng.normal(size=s)) for k, s in zip(PARAMETERS, [(5, 12), (5,), (3, 5), (3,)])}
    rows, mask = torch.from_numpy(rng.normal(size=(8, 12))), torch.tensor([True] * 6 + [False] * 2)
    for weights in ("client", "item"):
        for twice in (False, True):
            w = shares(rows, params, mask, weights, twice)
            assert (w > 0).all() and torch.allclose(w.sum(1), torch.ones(8, dtype=w.dtype))
    masked = shares(rows, params, mask, "client", False)
    assert torch.allclose(masked[:6], shares(rows[:6], params, mask[:6], "client", False))
    twice = shares(rows, params, mask, "client", True)
    assert twice.min() > 0.21 and twice.max() < 0.58


@pytest.mark.parametrize("view", ["sum", "mlp", "gate"])
def test_a_router_frozen_on_one_view_is_that_view(view, monkeypatch):
    """Same operators, one-hot weights: the run with that view alone."""
    from fedray.methods.plugins import fedvlr

    names = ("sum", "mlp", "gate")
    real = fedvlr._routers

    def one_hot(config, width, seed, clients):
        found = real(config, width, seed, clients)
        if found:
            found["router_2_bias"][:, names.index(view)] = 200.0
        return found

    monkeypatch.setattr(fedvlr, "_routers", one_hot)
    every = build(config_of(router_lr_scale=0.0), 30, FEATURES)
    alone = build(config_of(views=[view]), 30, FEATURES)
    down, single = every.down(every.init_server(0)), alone.down(alone.init_server(0))
    own = {k: torch.tensor(v[0]) for k, v in every.init_clients(0, np.array([0])).items()}
    params = {**{k: torch.tensor(v) for k, v in down.items()}, **own}
    lone = {**own, "view/" + view: params["view/" + view]}
    assert torch.equal(every.score(params), alone.score(lone))
    assert single.keys() == {"view/" + view}


def test_clients_with_different_histories_get_different_scores():
    where = run(config_of(train={"rounds": 5}), DATA, features=FEATURES)
    host, down = where[3]._hosts[0], where[0].broadcast.params
    scores = np.concatenate([s for _, s in score_clients(host.method, host.store, down)])
    assert np.abs(scores[0] - scores[1]).max() > 1e-3
    routers = host.store.private["router_2_bias"]
    assert np.abs(routers[0] - routers[1]).max() > 1e-6


@pytest.mark.parametrize("view", sorted(set(names_in("models.fusions")) - {"id"}))
def test_what_an_item_does_not_have_changes_nothing(view):
    """Whatever stands in the table where `present` is False."""
    noise = {m: t.copy() for m, t in FEATURES.tables.items()}
    for m, there in FEATURES.present.items():
        noise[m][~there] = 1e3
    config = config_of(views=[view])
    a = build(config, 30, FEATURES)
    b = build(config, 30, ItemFeatures(noise, FEATURES.present, "noisy"))
    x, y = (m.down(m.init_server(0)) for m in (a, b))
    np.testing.assert_array_equal(x["view/" + view], y["view/" + view])
    assert not np.array_equal(x["view/" + view], a.init_server(0)["item_embedding"])


@pytest.mark.parametrize("sources", [["text"], ["image", "text"], ["audio", "image", "text"]])
def test_any_set_of_features_will_do(sources):
    features = tiny_features(30, **{m: 4 + len(m) for m in sources})
    config = config_of(views=["sum", "mlp", "gate", "attention", "balanced"])
    state, reports, *_ = run(config, DATA, features=features)
    assert np.isfinite(reports[-1].metrics["train/loss"])
    assert f"operator/{sources[0]}/projection_weight" in state.state.params


BACKBONES = {
    "fcf": {"name": "fcf", "dim": 8, "lr": 0.1},
    "fedavg": {"name": "fedavg", "dim": 8, "lr": 0.5},
    "fedncf": {"name": "fedncf", "dim": 8, "hidden": [8, 4], "lr": 0.1},
    "fedrap": {"name": "fedrap", "dim": 8, "lr": 0.1, "item_lr": 5.0},
    "gpfedrec": {"name": "gpfedrec", "dim": 8, "hidden": [8, 4], "lr": 0.05, "user_lr_scale": 1},
}


@pytest.mark.parametrize("views", [["sum"], ["id", "sum"], ["id"], ["mlp"]])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_with_content_off_it_is_its_backbone(backbone, views):
    """No gain, operators that stay: what a search finds where content is of no use. The rows that move are D's: as a
    view, or, where the backbone adds D itself, beside a view that stays 0. In mixtures each has its share of the step.
    """
    rows = "fixed" if backbone in ("fedncf", "gpfedrec") else "moving"
    off = {"views": views, "rows": rows, "gain": 0.0, "operator_lr": 0.0}
    method = {"backbone": BACKBONES[backbone]}
    plain = run(tiny_config(method), DATA, features=FEATURES)[0]
    fused = run(tiny_config({**method, "plugins": {"fedvlr": off}}), DATA, features=FEATURES)[0]
    for k, v in plain.state.params.items():
        if len(views) == 1 or rows == "fixed":
            np.testing.assert_allclose(fused.state.params[k], v, atol=2e-5, rtol=0, err_msg=k)
        else:
            assert np.isfinite(fused.state.params[k]).all()


def test_what_stays_where():
    """Down: views and nothing of the operators; up: steps of views; private: head and router."""
    config = config_of()
    method = build(config, 30, FEATURES)
    down = method.down(method.init_server(0))
    assert set(down) == {"view/sum", "view/mlp", "view/gate"} == set(method.shared_rows)
    assert set(method.private) == {"head_weight", "head_bias", *PARAMETERS}


@pytest.mark.parametrize(
    ("backbone", "rows"),
    [({"name": "fcf"}, 3), ({"name": "fedavg"}, 3), ({"name": "fedrap"}, 4)],
    ids=["fcf", "fedavg", "fedrap"],
)
def test_numbers_on_the_client_are_those_of_the_papers_table(backbone, rows):
    """FCF, FedAvg (and PFedRec): 3 x 64 M and a router of 12,547; FedRAP one table more; heads are not counted."""
    config = config_of({**backbone, "dim": 64}, router_dim=64)
    method = build(config, 30, tiny_features(30, image=512, text=512))
    down = method.down(method.init_server(0))
    own = method.init_clients(0, np.array([0]))
    tables = sum(down[k].size for k in method.shared_rows) + sum(v.size for v in method.init_private_rows(0).values())
    assert tables == rows * 64 * 30
    assert sum(own[k].size for k in PARAMETERS) == 12_547


def test_misfits_are_named():
    with pytest.raises(UnsupportedError, match="no item features"):
        build(config_of(), 30)
    with pytest.raises(UnknownNameError, match="'sound' is not there"):
        build(config_of(features=["sound"]), 30, FEATURES)
    with pytest.raises(UnknownNameError, match="Did you mean 'gate'"):
        build(config_of(views=["gat"]), 30, FEATURES)
    with pytest.raises(UnsupportedError, match="item bias"):
        build(config_of({**FCF, "item_bias": True}), 30, FEATURES)
    with pytest.raises(UnsupportedError, match="one plug-in that makes the item rows"):
        build(config_of(plugins={"mlp": {}}), 30, FEATURES)
    with pytest.raises(UnsupportedError, match="Name fedopt before"):
        build(tiny_config({"backbone": FCF, "plugins": {"fedvlr": {}, "fedopt": {}}}), 30, FEATURES)
