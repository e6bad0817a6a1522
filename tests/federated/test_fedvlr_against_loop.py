"""`fedvlr` against the naive loop of tests/oracles/fused.py: at most 1e-5 apart after 3 rounds, as test_against_loop.

Routers start at random instead of at 0, each client's its own, so that weights are far from equal. Seeds are such that
no hidden unit, of clients, routers or operators, comes so near to 0 that rounding decides about it.
"""

from functools import cache
from unittest import mock

import numpy as np
import pytest
from torch.nn.functional import relu

from fedray.federated.client_store import NEVER
from fedray.federated.scoring import own_tables, score_clients
from fedray.methods import build
from fedray.methods.plugins import fedvlr
from tests.federated.test_against_loop import FEDNCF, FEDRAP, GPFEDREC, HALF, STEPS, WD
from tests.helpers import FCF, FEDAVG, executor, run, tiny_config, tiny_data, tiny_features
from tests.oracles.fused import Fused, fused_federation

DATA = tiny_data(clients=8, longest=16)
N = len(DATA)
FEATURES = tiny_features(DATA.n_items)
SMALL = {
    "router_dim": 6,
    "residual": False,
    "gain": 0.3,
    "projection": "random",
    "router_lr_scale": 2.0,
    "operator_optimizer": "sgd",
    "operator_lr": 0.3,
}
BPR, ITEM, DOUBLE = {"loss": "bpr"}, {"weights": "item"}, {"softmax": "double"}
RESIDUAL = {"residual": True}
MOVING = {"rows": "moving"}
WHITENED = {**MOVING, "projection": "whitened"}
ADAM = {"operator_optimizer": "adam", "operator_lr": 0.01}


def of(method, inside=0.0, outside=0.0, fedopt=None, backbone=None, **settings):
    """fedvlr on the method; inside, outside: the item_lr_scale of a dualper before or after it."""
    plugins = {"dualper": {"item_lr_scale": inside}} if inside else {}
    plugins |= {"fedopt": fedopt} if fedopt else {}
    plugins |= {"fedvlr": {**SMALL, **settings}}
    plugins |= {"dualper": {"item_lr_scale": outside}} if outside else {}
    return {"backbone": {**method["backbone"], **(backbone or {})}, "plugins": plugins}


CASES = {
    "fcf": (of(FCF), {}),
    "fcf-item-decay": (of(FCF, **ITEM, backbone={"lr_decay": 0.8}), WD),
    "fcf-residual-double-half": (of(FCF, **RESIDUAL, **DOUBLE), HALF),
    "fcf-moving": (of(FCF, **WHITENED, backbone={"lr_decay": 0.8}), WD),
    "fcf-one-view-bpr": (of(FCF, views=["mlp"]), BPR),
    "fcf-two-views-one-feature": (of(FCF, views=["id", "gate"], features=["text"]), STEPS),
    "fcf-adam": (of(FCF, **ADAM), {}),
    "fcf-fedopt": (of(FCF, fedopt={"optimizer": "sgd", "lr": 0.7, "momentum": 0.0, "schedule": "cosine"}), {}),
    "fcf-inside-residual": (of(FCF, inside=3, **RESIDUAL), {**WD, "private_weight_decay": 1e-2}),
    "fcf-inside-item-bpr-half": (of(FCF, inside=3, **ITEM), {**BPR, **HALF}),
    "fcf-outside": (of(FCF, outside=1), WD),
    "fcf-outside-double-half": (of(FCF, outside=1, **DOUBLE), HALF),
    "fedavg-residual-moving": (of(FEDAVG, **RESIDUAL, **WHITENED), {}),
    "fedavg-item-private-steps": (of(FEDAVG, **ITEM), STEPS),
    "fedavg-inside": (of(FEDAVG, inside=3, **DOUBLE), {}),
    "fedavg-outside": (of(FEDAVG, outside=1, **ITEM), HALF),
    "fedncf": (of(FEDNCF), {}),
    "fedncf-item-decay-moving": (
        of(FEDNCF, operator_lr=0.15, **ITEM, **MOVING, backbone={"weighting": "samples", "lr_decay": 0.8}),
        WD,
    ),
    "fedncf-private-steps": (of(FEDNCF, operator_lr=0.15, **ITEM), STEPS),
    "fedncf-neumf-private-steps": (of(FEDNCF, **DOUBLE, backbone={"gmf": True}), STEPS),
    "fedncf-neumf-double-bpr": (of(FEDNCF, **DOUBLE, backbone={"gmf": True}), BPR),
    "fedncf-inside-residual": (of(FEDNCF, inside=3, **RESIDUAL), {**WD, **HALF}),
    "fedncf-outside": (of(FEDNCF, outside=1, operator_lr=0.15, **ITEM), WD),
    "fedrap-residual": (of(FEDRAP, **RESIDUAL), {}),
    "fedrap-item-decay-half-moving": (
        of(FEDRAP, **ITEM, **MOVING, backbone={"lr_decay": 0.8, "step_decay": 0.9}),
        {**WD, **HALF},
    ),
    "fedrap-double-tanh-l2": (of(FEDRAP, **DOUBLE, backbone={"schedule": "tanh", "sparsity_norm": "l2"}), STEPS),
    "fedrap-inside": (of(FEDRAP, inside=2), WD),
    "fedrap-outside": (of(FEDRAP, outside=1, **ITEM), HALF),
    "gpfedrec-residual": (of(GPFEDREC, operator_lr=1.0, **RESIDUAL), {}),
    "gpfedrec-item-decay": (of(GPFEDREC, operator_lr=1.0, **ITEM, backbone={"neighbours": 5, "graph_layers": 2}), WD),
    "gpfedrec-double-half": (of(GPFEDREC, operator_lr=1.0, **DOUBLE, backbone={"reg": 3.0}), {**HALF, **WD}),
    "gpfedrec-bpr-moving": (of(GPFEDREC, operator_lr=0.3, **MOVING), {**BPR, **STEPS}),
}
EACH = pytest.mark.parametrize("case", CASES)
PATHS = pytest.mark.parametrize("path", ["compiled", "vmap"])


@pytest.fixture(scope="module", autouse=True)
def routers_that_differ():
    start = fedvlr._routers

    def drawn(config, width, seed, clients):
        rng = np.random.default_rng(seed)
        return {
            k: v + 0.5 * rng.standard_normal(v.shape, np.float32)
            for k, v in start(config, width, seed, clients).items()
        }

    with mock.patch.object(fedvlr, "_routers", drawn):
        yield


@cache
def loop(case):
    """The oracle's run, of the first seed that keeps all hidden units away from 0."""
    method, train = CASES[case]
    for seed in range(20):
        config, nearest = tiny_config(method, {"local_epochs": 2, **train}, seed=seed), []

        def watched(x, nearest=nearest):
            nearest.append(float(x.detach().abs().min()))
            return relu(x)

        names = [f"tests.oracles.{module}.relu" for module in ("client_models", "fused")]
        with mock.patch(names[0], watched), mock.patch(names[1], watched):
            found = fused_federation(executor(config, DATA, features=FEATURES)._hosts[0], FEATURES)
        if min(nearest, default=1.0) > 3e-7:
            return found
    raise AssertionError(f"{case}: no seed keeps its distance")


@cache
def package(case, path):
    """The same run by the package: (final Run, reports, Outcome, executor)."""
    config = loop(case).config
    if path == "compiled" and build(config, DATA.n_items, FEATURES).kernel is None:
        pytest.skip("no kernel")
    train = config.train.model_copy(update={"path": path})
    return run(config.model_copy(update={"train": train}), DATA, features=FEATURES)


def close(case, found, expected, name):
    """Adam's step has the size of its rate however small a gradient is, and so has its rounding."""
    adam = loop(case).settings.operator_optimizer == "adam"
    np.testing.assert_allclose(found, expected, atol=1e-4 if adam else 1e-5, rtol=0, err_msg=name)


@PATHS
@EACH
def test_three_rounds_equal_the_naive_loop(case, path):
    expected, (final, reports, _, where) = loop(case), package(case, path)
    method, store = final.method, where._hosts[0].store
    server = {**expected.server, **expected.operators.arrays()}
    assert final.state.params.keys() == server.keys()
    for k, v in server.items():
        close(case, final.state.params[k], v, k)
    down = expected.down()
    assert final.broadcast.params.keys() == down.keys()
    for k, v in down.items():
        close(case, final.broadcast.params[k], v, k)
    for k in method.private:
        close(case, store.private[k], [own[k] for own in expected.client], k)
    close(case, [r.metrics["train/loss"] for r in reports], expected.loss, "loss")


@PATHS
@EACH
def test_every_client_has_the_tables_that_it_has_in_the_loop(case, path):
    expected, (final, _, _, where) = loop(case), package(case, path)
    method, store = final.method, where._hosts[0].store
    kept = {*method.private_rows, *method.tuned, *method.collects}
    for c in range(N):
        base = final.broadcast.params if store.last_round[c] == NEVER else store.bases.get(int(store.last_round[c]), {})
        tables = own_tables(store, base, c)
        assert tables.keys() == (kept if store.last_round[c] != NEVER else set(method.private_rows))
        for k, v in tables.items():
            close(case, v, expected.client[c][k], f"{k} of client {c}")


@EACH
def test_scores_are_those_of_the_loops_whole_tables(case):
    """By kernel, if there is one, or one by one."""
    expected, (final, _, _, where) = loop(case), package(case, "auto")
    scores = np.stack([expected.scores(c) for c in range(N)])
    for method in (final.method, final.method._replace(kernel=None)):
        for who, found in score_clients(method, where._hosts[0].store, final.broadcast.params):
            np.testing.assert_allclose(found, scores[who], atol=5e-5, rtol=0)


@EACH
def test_every_case_moves_what_it_compares(case):
    """By much more than the tolerance, and at size one. Under BPR a bias that all items share cancels."""
    found = loop(case)
    still = {"head_bias", "output_bias", "operator/mlp/output_bias"} if found.config.train.loss == "bpr" else set()
    before, after = everything(Fused(found.host, FEATURES)), everything(found)
    assert before.keys() == after.keys()
    for k in before.keys() - still:
        assert np.abs(after[k] - before[k]).max() > 1e-4, k
        assert np.abs(after[k]).max() < 10, k


def everything(found):
    """What the server has, and what the clients have that never leaves them."""
    private = found.client[0].keys() - found.server.keys() - found.sent.keys() - {f"step/{k}" for k in found.sent}
    mine = {k: np.stack([own[k] for own in found.client]) for k in private}
    return {**found.server, **found.operators.arrays(), **found.sent, **mine}


def test_dualper_before_and_after_is_the_same():
    """fedvlr takes the clients' rate of items out of the operators' step, wherever that rate comes from."""
    found = [run(tiny_config(of(FCF, **{side: 3})), DATA, features=FEATURES)[0] for side in ("inside", "outside")]
    for k, v in found[0].state.params.items():
        np.testing.assert_allclose(found[1].state.params[k], v, atol=1e-5, rtol=0, err_msg=k)
