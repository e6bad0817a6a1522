"""Soft labels: by hand, on both paths, and where nobody may notice them."""

import math

import numpy as np
import pytest
import torch

from fedray.federated.local import Soft
from fedray.federated.local_training import train_clients
from fedray.federated.method import Batch
from fedray.federated.scoring import score_clients
from fedray.federated.soft import entropy, groups_of
from fedray.models.losses import bce
from tests import guided
from tests.guided import GROUP, PREFERENCE, RATIO, local, made
from tests.helpers import tiny_config, tiny_data, tiny_features
from tests.methods.test_fcf import BIAS, PATHS, TABLE, WEIGHT, samples, sigmoid, start
from tests.methods.test_fcf import method as fcf
from tests.properties.test_packing import assert_same, everything

DATA = tiny_data(clients=14, items=40)
FEATURES = tiny_features(40)
GROUPED = np.flatnonzero(groups_of(guided.some_groups(14), np.arange(14)) >= 0)
BACKBONES = {
    "fcf": {"name": "fcf", "dim": 7, "lr": 0.03, "item_bias": True},
    "fedavg": {"name": "fedavg", "dim": 8, "lr": 0.2},
    "fedncf": {"name": "fedncf", "dim": 5, "hidden": [7, 3], "gmf": True, "item_lr_scale": 0.5},
    "fedrap": {"name": "fedrap", "dim": 7, "item_lr": 0.5, "personal_lr_scale": 0.5},
    "gpfedrec": {"name": "gpfedrec", "dim": 7, "hidden": [9], "item_lr_scale": 1.0, "user_lr_scale": 5.0},
}
FUSED = {f"fedvlr {k}": k for k in ("fedavg", "fedrap", "gpfedrec")}
EACH = pytest.mark.parametrize("name", [*BACKBONES, *FUSED])


def config_of(name, plugins=None, **train):
    fused = {"fedvlr": {"router_dim": 5}} if name in FUSED else {}
    schedule = {"local_epochs": 2, "batch_size": 16, "rounds": 2, **train}
    return tiny_config(
        {"backbone": BACKBONES[FUSED.get(name, name)], "plugins": {**fused, **(plugins or {})}}, schedule
    )


def first_round(name, config, **labels):
    return local(config, DATA, made(config, DATA, FEATURES, **labels))


def per_client(found, c):
    """All that local training left of one client, its ratio aside."""
    s, result = found
    rows = slice(s.row_ptr[c], s.row_ptr[c + 1])
    own = [v[c] for k, v in {**result.private, **result.dense}.items() if k != RATIO]
    return [v[rows] for v in result.rows.values()] + own + [result.loss[c]]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@EACH
@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_client_without_a_group_is_bit_by_bit_what_it_is_without_labels(name, ema):
    config = config_of(name)
    plain, soft = first_round(name, config), first_round(name, config, ema=ema)
    equal = [c for c in range(len(DATA)) if same(per_client(plain, c), per_client(soft, c))]
    assert equal == np.setdiff1d(np.arange(len(DATA)), GROUPED).tolist()
    if ema:
        assert np.flatnonzero(~np.isnan(soft[1].private[RATIO])).tolist() == GROUPED.tolist()


@EACH
def test_no_weight_or_no_groups_is_no_guide(name):
    config = config_of(name)
    plain = everything(*guided.run(config, DATA, made(config, DATA, FEATURES)))
    for labels in ({"weight": 0.0}, {"group": np.full(14, -1)}, {"group": []}):
        found = everything(*guided.run(config, DATA, made(config, DATA, FEATURES, **labels)))
        assert_same(plain, found)


def agree(config, **labels):
    """Both paths on one round; the first is returned."""
    method = made(config, DATA, FEATURES, **labels)
    paths = [
        config.model_copy(update={"train": config.train.model_copy(update={"path": p})}) for p in ("compiled", "vmap")
    ]
    (_, a), (_, b) = (local(c, DATA, method) for c in paths)
    for part in ("rows", "dense", "private"):
        for k, v in getattr(a, part).items():
            np.testing.assert_allclose(v, getattr(b, part)[k], rtol=1e-5, atol=1e-5, err_msg=f"{part} {k}")
    np.testing.assert_allclose(a.loss, b.loss, rtol=1e-5, atol=1e-5)
    return a


@EACH
@pytest.mark.parametrize("loss", ["bce", "bpr"])
@pytest.mark.parametrize("ema", [None, 0.8])
def test_the_paths_agree(name, loss, ema):
    found = agree(config_of(name, loss=loss), ema=ema, weight=0.3)
    if ema:
        assert (found.private[RATIO][GROUPED] > 0).all()


VARIANTS = {"dualper": ({"dualper": {"item_lr_scale": 2}}, {}), "private steps": ({}, {"private_steps": 2})}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["fcf", "fedncf", "fedrap", "fedvlr fedavg"])
def test_the_paths_agree_in_several_phases(name, variant):
    """The ratio moves once a step, whatever its phases."""
    plugins, train = VARIANTS[variant]
    agree(config_of(name, plugins, **train), ema=0.8, weight=0.3)


def kl(q, p):
    return q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))


def soft(q, strength, ratio, ema):
    target = np.array(q, np.float32)
    one = (np.array([v], np.float32) for v in (strength, ratio))
    return Soft(target, entropy(target), *one, np.float32(ema))


def one_client(lr, path, labels, items, given, **train):
    """FCF of dimension 1 on z = (0.5, -1) with w = 2, b = 0.1, its ratio beside it."""
    method, schedule = fcf({"name": "fcf", "dim": 1, "lr": lr}, path=path, **train)
    method = guided.guided(method, [[0.5, 0.5]], [0], ema=0.9)
    begin = start([[0.5], [-1]], [2], 0.1)
    begin = type(begin)(begin.tables, begin.index, {}, {**begin.private, RATIO: labels.ratio}, {}, labels)
    return train_clients(method, schedule, 0, begin, samples(items, given, 2))


@PATHS
def test_one_step_by_hand(path):
    """Item 0 with label 1 and item 1 with 0, q = 0.3 and 0.6, weight 0.7: errors (p - y)/2 + 0.7 (p - q)/2."""
    found = one_client(0.1, path, soft([0.3, 0.6], 0.7, np.nan, -1), [0, 1], [1, 0])
    p, y, q, z = [sigmoid(1.1), sigmoid(-1.9)], [1, 0], [0.3, 0.6], [0.5, -1]
    error = [(p[k] - y[k]) / 2 + 0.7 * (p[k] - q[k]) / 2 for k in range(2)]
    assert found.private[BIAS][0] == pytest.approx(0.1 - 0.1 * sum(error), abs=1e-6)
    assert found.private[WEIGHT][0, 0] == pytest.approx(2 - 0.1 * sum(e * x for e, x in zip(error, z)), abs=1e-6)
    assert found.rows[TABLE][:, 0] == pytest.approx([x - 0.2 * e * 2 for e, x in zip(error, z)], abs=1e-6)
    base = -(math.log(p[0]) + math.log(1 - p[1])) / 2
    assert found.loss[0] == pytest.approx(base + 0.7 * (kl(0.3, p[0]) + kl(0.6, p[1])) / 2, rel=1e-5)


@PATHS
@pytest.mark.parametrize("before", [np.nan, 3.0])
def test_the_ratio_by_hand_on_two_batches(path, before):
    """Nothing moves but the ratio: it starts as that of the first batch, keeps 0.9 of itself, and counts at once."""
    found = one_client(0.0, path, soft([0.3, 0.6], 0.7, before, 0.9), [0, 1], [1, 0], batch_size=1)
    p, q = [sigmoid(1.1), sigmoid(-1.9)], [0.3, 0.6]
    base, term = [-math.log(p[0]), -math.log(1 - p[1])], [kl(q[k], p[k]) for k in range(2)]
    now = [b / (t + 1e-8) for b, t in zip(base, term)]
    first = now[0] if math.isnan(before) else 0.9 * before + 0.1 * now[0]
    second = 0.9 * first + 0.1 * now[1]
    assert found.private[RATIO][0] == pytest.approx(second, rel=1e-5)
    loss = (base[0] + 0.7 * first * term[0] + base[1] + 0.7 * second * term[1]) / 2
    assert found.loss[0] == pytest.approx(loss, rel=1e-5)


PACKINGS = {"ones": [[c] for c in range(14)], "three": [[13, 2, 5, 0], [1, 3, 4, 12], [6, 7, 8, 9, 10, 11]]}


@pytest.mark.parametrize(("name", "path"), [("fcf", "vmap"), *((n, "compiled") for n in (*BACKBONES, "fedvlr fedrap"))])
def test_packing_changes_nothing(name, path):
    config = config_of(name, path=path, rounds=3, clients_per_round=0.7, local_epochs=1)
    method = made(config, DATA, FEATURES, ema=0.9)
    whole = everything(*guided.run(config, DATA, method))
    assert not np.isnan(whole[0][RATIO]).all()
    for parts in PACKINGS.values():
        assert_same(whole, everything(*guided.run(config, DATA, method, parts)))


@pytest.mark.parametrize("name", ["fcf", "fedncf", "fedrap"])
def test_the_ratio_rests_in_a_round_without_the_term(name):
    config = config_of(name, rounds=1)
    always, once = (made(config, DATA, ema=0.9, weight=w) for w in (0.5, lambda r: 0.5 * (r == 0)))
    longer = config.model_copy(update={"train": config.train.model_copy(update={"rounds": 2})})
    one, two, three = (guided.run(c, DATA, m)[3] for c, m in ((config, once), (longer, once), (longer, always)))
    rested, kept, moved = (w._hosts[0].store.private[RATIO] for w in (one, two, three))
    np.testing.assert_array_equal(rested, kept)
    assert (kept != moved)[GROUPED].all()


def test_labels_go_down_a_row_a_client_and_nowhere_else():
    config = config_of("fedncf")
    plain, soft_ = (guided.run(config, DATA, made(config, DATA, **labels)) for labels in ({}, {"ema": 0.9}))
    down = [[r.bytes_down for r in found[1]] for found in (plain, soft_)]
    assert [b - a for a, b in zip(*down)] == [14 * 40 * 4] * 2
    assert [r.bytes_up for r in plain[1]] == [r.bytes_up for r in soft_[1]]
    method, params = soft_[0].method, soft_[0].state.params
    np.testing.assert_array_equal(params[PREFERENCE], guided.preferences(40))
    np.testing.assert_array_equal(params[GROUP], guided.some_groups(14))
    assert method.parameters(params).keys() == plain[0].state.params.keys()
    assert not {PREFERENCE, GROUP} & soft_[3]._hosts[0].store.private.keys()


def test_guided_clients_come_to_think_as_their_group():
    """One group, a loud term: what they score says what the group prefers, of items nobody has trained on least."""
    config, q = config_of("fcf", rounds=10), np.where(np.arange(40) % 4 < 2, 0.9, 0.1)

    def agreement(**labels):
        method = made(config, DATA, group=np.zeros(14), preference=q[None], **labels)
        final, _, _, where = guided.run(config, DATA, method)
        scores = np.concatenate([s for _, s in score_clients(method, where._hosts[0].store, final.state.params)])
        return np.mean((scores > 0) == (q > 0.5))

    assert agreement(weight=20.0) > 0.9 > 0.7 > agreement(weight=0.0)


@pytest.mark.parametrize("plugin", ["fedvlr", "mlp", "vbpr", "fedmr", None])
@pytest.mark.parametrize("name", BACKBONES)
def test_the_loss_is_made_of_the_logits(name, plugin):
    if plugin == "vbpr" and name not in ("fcf", "fedavg"):
        pytest.skip("linear heads only")
    backbone = {**BACKBONES[name], **({"item_bias": False} if name == "fcf" else {})}
    config = tiny_config({"backbone": backbone, "plugins": {plugin: {}} if plugin else {}})
    m = made(config, DATA, FEATURES)
    own = {k: v[0] for k, v in m.init_clients(0, np.array([3])).items()}
    params = {k: torch.tensor(v) for k, v in {**m.down(m.init_server(0)), **m.init_private_rows(0), **own}.items()}
    params |= dict.fromkeys(m.coefficients(0), torch.tensor(0.0))
    label, mask = torch.tensor([1.0, 0, 1, 0, 0, 0]), torch.tensor([True, True, True, True, True, False])
    batch = Batch(torch.tensor([3, 9, 3, 1, 39, 0]), label, mask)
    logit = m.logits(params, batch)
    torch.testing.assert_close(m.local_loss(params, batch), bce(logit, label, mask))
    if plugin is None:
        torch.testing.assert_close(logit, m.score(params)[batch.item])


def test_the_entropy_is_0_at_both_ends():
    np.testing.assert_allclose(entropy(np.float32([0, 1, 0.5])), [0, 0, -math.log(2)], rtol=1e-6)
