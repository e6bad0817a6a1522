"""The group fusion against a loop over (group, item) tuples, and by its laws."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedray import seeding
from fedray.models.group_fusion import EMBEDDING, Fitting, GroupFusion, _batches
from fedray.models.projection import scaled
from fedray.types import ItemFeatures
from tests.helpers import tiny_features

FEATURES = tiny_features(10, seed=1, image=9, text=6)
FEATURES.present["image"][[3, 7]] = FEATURES.present["text"][[3, 7]] = False
SGD = Fitting(epochs=3, batch=0, lr=0.5, optimizer="sgd", weight_decay=1e-2)
ADAM = SGD._replace(optimizer="adam", lr=0.01)
KEY = seeding.key(0, "fusion", 4)
ALL = np.array([3, 1, 2, 5])
FUSIONS = ("mlp", "sum", "gate", "attention", "text")


def fusion_of(name="mlp", features=FEATURES, content_dim=0):
    return GroupFusion(name, features, (), groups=4, group_dim=7, width=5, content_dim=content_dim, gain=1.0)


def targets_of(seed=0, items=10):
    return np.random.default_rng(seed).normal(size=(4, items, 5)).astype(np.float32) * 0.3


# ---- against the loop


def one_tuple(module, p, features, group, item):
    """Q_l[i], as the paper draws it."""
    x = {"id": (p[EMBEDDING][group] @ p["group/projection_weight"].T + p["group/projection_bias"])[None]}
    there = {"id": torch.ones(1, dtype=torch.bool)}
    for m in features.tables:
        content = torch.from_numpy(scaled(features.tables[m], features.present[m])[item]).double()
        there[m] = torch.tensor([bool(features.present[m][item])])
        made = p[f"group/feature/{m}/projection_weight"] @ content + p[f"group/feature/{m}/projection_bias"]
        x[m] = made[None] * there[m]
    own = {k.removeprefix("group/fusion/"): v for k, v in p.items() if k.startswith("group/fusion/")}
    return module.fuse(own, x, there)[0]


def looped(name, start, targets, groups, batches, fitting):
    """The fit, tuple by tuple, in float64 with torch's own optimisers."""
    from fedray.config import part_module

    module = part_module("models.fusions", name)
    p = {k: torch.tensor(v, dtype=torch.float64, requires_grad=True) for k, v in start.items()}
    kind = torch.optim.SGD if fitting.optimizer == "sgd" else torch.optim.Adam
    step, losses = kind(p.values(), lr=fitting.lr, weight_decay=fitting.weight_decay), []
    for items in batches:
        step.zero_grad()
        error = [
            (one_tuple(module, p, FEATURES, g, i) - torch.from_numpy(targets[g, i]).double()).square().mean()
            for g in groups
            for i in items
        ]
        (sum(error) / len(error)).backward()
        losses.append(sum(error).item() / len(error))
        step.step()
    return {k: v.detach().numpy() for k, v in p.items()}, losses


@pytest.mark.parametrize("fitting", [SGD, ADAM], ids=["sgd", "adam"])
@pytest.mark.parametrize("name", FUSIONS)
def test_a_fit_is_that_of_the_loop_over_tuples(name, fitting):
    fusion = fusion_of(name)
    start = fusion.init(0)
    expected, losses = looped(name, start, targets_of(), range(4), [range(10)] * 3, fitting)
    found, seen = fusion.fit(start, targets_of(), ALL, fitting, KEY)
    np.testing.assert_allclose(seen, losses, rtol=1e-5)
    for k, v in expected.items():
        if fitting.optimizer == "sgd" or k != "group/fusion/key_bias":  # no gradient but rounding, which Adam blows up
            np.testing.assert_allclose(found[k], v, atol=2e-5, err_msg=k)


def test_batches_of_items_are_those_of_the_loop_in_the_same_order():
    fusion, fitting = fusion_of(), SGD._replace(batch=4)
    start, batches = fusion.init(0), [items.tolist() for _, items in _batches(10, fitting, KEY)]
    assert [len(b) for b in batches] == [4, 3, 3] * 3
    for lo in (0, 3, 6):
        assert sorted(sum(batches[lo : lo + 3], [])) == list(range(10))
    expected, losses = looped("mlp", start, targets_of(), range(4), batches, fitting)
    found, seen = fusion.fit(start, targets_of(), ALL, fitting, KEY)
    np.testing.assert_allclose(seen, np.reshape(losses, (3, 3)).mean(axis=1), rtol=1e-5)
    for k, v in expected.items():
        np.testing.assert_allclose(found[k], v, atol=2e-5, err_msg=k)


@pytest.mark.parametrize("name", FUSIONS)
def test_q_is_what_the_loop_says_of_each_tuple(name):
    from fedray.config import part_module

    fusion = fusion_of(name)
    params = fusion.init(3)
    p, module = (
        {k: torch.tensor(v, dtype=torch.float64) for k, v in params.items()},
        part_module("models.fusions", name),
    )
    expected = [[one_tuple(module, p, FEATURES, g, i).numpy() for i in range(10)] for g in range(4)]
    np.testing.assert_allclose(fusion.fused(params), expected, atol=1e-5)


# ---- laws


def test_numbers_are_those_of_the_paper():
    """g 512 + 98,496 + 32,960."""
    features = tiny_features(12, image=512, text=512)
    params = GroupFusion("mlp", features, (), groups=5, group_dim=512, width=64, content_dim=0, gain=0.3).init(0)
    assert sum(v.size for v in params.values()) == 5 * 512 + 98_496 + 32_960
    assert all(v.dtype == np.float32 for v in params.values())


@pytest.mark.parametrize("fitting", [SGD._replace(batch=5), ADAM], ids=["sgd", "adam"])
def test_the_loss_falls(fitting):
    fusion = fusion_of()
    losses = fusion.fit(fusion.init(0), targets_of(), ALL, fitting._replace(epochs=60), KEY)[1]
    assert len(losses) == 60 and losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("fitting", [SGD, ADAM], ids=["sgd", "adam"])
def test_groups_without_members_change_nothing_and_get_rows(fitting):
    fusion, noise = fusion_of(), targets_of()
    start, members = fusion.init(0), np.array([3, 0, 2, 0])
    noise[[1, 3]] = np.nan
    found, losses = fusion.fit(start, noise, members, fitting, KEY)
    same, _ = fusion.fit(start, targets_of(), members, fitting, KEY)
    assert np.isfinite(losses).all() and np.isfinite(fusion.fused(found)).all()
    for k, v in found.items():
        np.testing.assert_array_equal(v, same[k])
    np.testing.assert_array_equal(found[EMBEDDING][[1, 3]], start[EMBEDDING][[1, 3]])
    assert (found[EMBEDDING][[0, 2]] != start[EMBEDDING][[0, 2]]).any(axis=1).all()
    assert np.abs(fusion.fused(found)[1] - fusion.fused(found)[3]).max() > 1e-4


def test_without_any_members_all_stays():
    fusion = fusion_of()
    start = fusion.init(0)
    found, losses = fusion.fit(start, targets_of(), np.zeros(4, int), SGD, KEY)
    assert found is start and not len(losses)


@pytest.mark.parametrize("content_dim", [0, 4])
def test_what_an_item_does_not_have_changes_nothing(content_dim):
    noise = {m: np.where(FEATURES.present[m][:, None], t, 1e3).astype(np.float32) for m, t in FEATURES.tables.items()}
    fusions = [
        fusion_of(features=f, content_dim=content_dim)
        for f in (FEATURES, ItemFeatures(noise, FEATURES.present, "noisy"))
    ]
    (a, one), (b, two) = (f.fit(f.init(0), targets_of(), ALL, SGD, KEY) for f in fusions)
    np.testing.assert_array_equal(fusions[0].fused(a), fusions[1].fused(b))
    np.testing.assert_array_equal(one, two)
    bare = ~FEATURES.present["image"] & ~FEATURES.present["text"]
    rows = fusions[0].fused(a)[:, bare]
    np.testing.assert_allclose(rows, np.broadcast_to(rows[:, :1], rows.shape), atol=1e-6)


def test_a_fit_goes_on_where_the_last_one_stopped():
    fusion = fusion_of()
    start, six = fusion.init(0), SGD._replace(epochs=6)
    whole, losses = fusion.fit(start, targets_of(), ALL, six, KEY)
    half, first = fusion.fit(start, targets_of(), ALL, SGD, KEY)
    again, second = fusion.fit(half, targets_of(), ALL, SGD, KEY)
    np.testing.assert_array_equal(losses, [*first, *second])
    for k, v in whole.items():
        np.testing.assert_array_equal(v, again[k])
    np.testing.assert_array_equal(start[EMBEDDING], fusion.init(0)[EMBEDDING])  # and the start is left as it was


def test_other_parameters_are_handed_through():
    fusion = fusion_of()
    start = {**fusion.init(0), "item_embedding": np.ones(3)}
    found, _ = fusion.fit(start, targets_of(), ALL, SGD, KEY)
    assert found.keys() == start.keys() and found["item_embedding"] is start["item_embedding"]


def test_principal_axes_keep_the_span_and_the_scale():
    rng = np.random.default_rng(0)
    low = (rng.normal(size=(10, 3)) @ rng.normal(size=(3, 6))).astype(np.float32)
    features = replace(FEATURES, tables={**FEATURES.tables, "text": low * FEATURES.present["text"][:, None]})
    fusion = fusion_of(features=features, content_dim=5)
    (image, _), (text, there) = fusion._content["image"], fusion._content["text"]
    assert image.shape == (10, 5) and text.shape == (10, 3)
    for table, mask in fusion._content.values():
        np.testing.assert_allclose(table[mask].square().mean(), 1.0, rtol=1e-5)
        assert not table[~mask].any()
    full = scaled(features.tables["text"], features.present["text"])[there]
    left = full - text[there].numpy() @ np.linalg.lstsq(text[there].numpy(), full)[0]
    assert np.abs(left).max() < 1e-5
    assert fusion.init(0)["group/feature/text/projection_weight"].shape == (5, 3)
    assert fusion_of(content_dim=9)._content["text"][0].shape == (10, 6)


def test_threads_do_not_matter():
    fusion, before = fusion_of(features=tiny_features(500, image=300, text=200)), torch.get_num_threads()
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(fusion.fit(fusion.init(0), targets_of(items=500), ALL, ADAM._replace(batch=200), KEY)[0])
    torch.set_num_threads(before)
    for k, v in found[0].items():
        np.testing.assert_array_equal(v, found[1][k])
