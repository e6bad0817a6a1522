"""Groups of clients: planted ones are found, degenerate vectors are no trouble, and names last."""

import warnings

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

from fedray import seeding
from fedray.errors import NonFiniteVectorError
from fedray.federated import grouping
from fedray.federated.grouping import affinity, aligned, grouped, plane, rand_index, reduced, sketched, standardised

HOWS = ("spectral", "kmeans", "minibatch")
KEY = seeding.key(0, "grouping", 3)
NOBODY = np.zeros(0, np.int32)


@pytest.fixture(autouse=True)
def no_warning_escapes():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def planted(n=60, groups=3, p=5, seed=0):
    """Vectors round `groups` far points, and whose is whose."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, groups, n)
    return (rng.normal(size=(groups, p)) * 8)[label] + rng.normal(size=(n, p)) * 0.3, label


# ---- the clusters


@pytest.mark.parametrize("how", [*HOWS, "auto"])
def test_planted_groups_are_found_and_found_again(how):
    x, label = planted()
    found = grouped(standardised(x), 3, how, KEY)
    assert rand_index(found, label) == 1.0
    np.testing.assert_array_equal(found, grouped(standardised(x), 3, how, KEY))
    assert found[0] == 0 and set(found) == {0, 1, 2}
    order = np.random.default_rng(1).permutation(len(x))
    assert rand_index(grouped(standardised(x[order]), 3, how, KEY), label[order]) == 1.0


def test_spectral_agrees_with_scikit_learn():
    from sklearn.cluster import SpectralClustering

    x = planted(groups=4)[0]
    theirs = SpectralClustering(4, affinity="precomputed", random_state=0).fit_predict(affinity(x))
    assert rand_index(grouped(x, 4, "spectral", KEY), theirs) == 1.0


def test_affinity_by_hand():
    """Points 0, 0, 3 and 7 on a line: distances that are not 0 are 3, 7, 3, 7, 4; the median is 4."""
    x = np.array([[0.0], [0.0], [3.0], [7.0]])
    distance = np.array([[0, 0, 3, 7], [0, 0, 3, 7], [3, 3, 0, 4], [7, 7, 4, 0]])
    np.testing.assert_allclose(affinity(x), np.exp(-(distance**2) / (2 * 4.0**2)), rtol=1e-12)


def test_auto_goes_by_size(monkeypatch):
    monkeypatch.setattr(grouping, "SPECTRAL", 10)
    monkeypatch.setattr(grouping, "KMEANS", 20)
    seen = []
    monkeypatch.setattr(grouping, "_clustered", lambda x, g, how, seed: seen.append(how) or np.zeros(len(x), int))
    for n in (10, 11, 20, 21):
        grouped(planted(n)[0], 3, "auto", KEY)
    assert seen == ["spectral", "kmeans", "kmeans", "minibatch"]


def test_random_groups_are_of_equal_size_and_do_not_look_at_the_vectors():
    x, label = planted(300)
    found = grouped(x, 3, "random", KEY)
    np.testing.assert_array_equal(found, grouped(-x, 3, "random", KEY))
    assert set(np.bincount(found)) == {100}
    assert abs(rand_index(found, label)) < 0.05


@pytest.mark.parametrize("how", [*HOWS, "random", "auto"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_degenerate_vectors_are_well_defined(how, dtype):
    far = np.array([[9, 0], [0, 0], [9, 0], [-0.0, 0]], dtype)
    for x, groups in ((far[:0], 3), (far[:1], 3), (far[:2], 5), (far, 1), (far, 2), (far, 3), (far[:, :0], 2)):
        found = grouped(standardised(x), groups, how, KEY)
        assert len(found) == len(x) and (found >= 0).all() and (found < groups).all()
        if how != "random" and groups > 1 and x.shape[1]:
            np.testing.assert_array_equal(found, np.array([0, 1, 0, 1])[: len(x)])
    same = np.ones((50, 4), dtype)
    if how != "random":
        assert not grouped(standardised(same), 5, how, KEY).any()


@pytest.mark.parametrize("how", HOWS)
def test_one_client_far_from_all_others_is_no_trouble(how):
    x = np.random.default_rng(0).normal(size=(40, 3))
    x[7] = 1e6
    assert set(grouped(standardised(x), 4, how, KEY)) <= {0, 1, 2, 3}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_who_is_not_finite_is_named(value):
    x, client = np.ones((9, 2), np.float32), np.arange(100, 109)
    x[2, 1] = x[5, 0] = value
    with pytest.raises(NonFiniteVectorError, match="clients 102, 105"):
        standardised(x, client)
    with pytest.raises(NonFiniteVectorError, match="rows 2, 5"):
        grouped(x, 2, "kmeans", KEY)
    x[:] = value
    with pytest.raises(NonFiniteVectorError, match="104 and 4 more"):
        standardised(x, client)


# ---- before the clusters


def test_standardised_by_hand():
    x = np.array([[1, 5, 0.1], [3, 5, 0.1]], np.float32)
    np.testing.assert_array_equal(standardised(x), np.array([[-1, 0, 0], [1, 0, 0]], np.float32))
    assert standardised(x).dtype == np.float32


@pytest.mark.parametrize("shape", [(80, 30), (30, 80)])
def test_pca_keeps_what_varies(shape):
    """Three wide axes among narrow ones: distances stay, whichever Gram matrix is smaller."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(shape[0], 3)) @ rng.normal(size=(3, shape[1])) + rng.normal(size=shape) * 1e-3
    found = reduced(x, "pca")
    assert found.shape[1] <= 3
    kept = np.square(found - found.mean(0)).sum() / np.square(x - x.mean(0)).sum()
    assert 0.95 <= kept <= 1.0
    assert reduced(x, "none") is x
    assert not reduced(np.ones((4, 3)), "pca").any()


def test_a_sketch_keeps_distances_roughly():
    x = np.random.default_rng(0).normal(size=(40, 500)).astype(np.float32)
    a, b = (np.linalg.norm(v[:20] - v[20:], axis=1) for v in (x, reduced(x, "projection", 200, 7)))
    np.testing.assert_allclose(b / a, 1.0, atol=0.25)
    assert not np.array_equal(sketched(x, 8, 0), sketched(x, 8, 1))
    assert sketched(x[:0], 8, 0).shape == (0, 8)


def test_a_clients_sketch_is_its_own_however_clients_are_packed_and_on_any_number_of_threads():
    x = np.random.default_rng(0).normal(size=(150, 8321)).astype(np.float32)
    whole, before = sketched(x, 64, 0), torch.get_num_threads()
    for threads in (1, 2, 3):
        with threadpool_limits(threads):
            torch.set_num_threads(threads)
            for lo, hi in ((0, 1), (63, 64), (37, 120), (64, 150)):
                np.testing.assert_array_equal(sketched(x[lo:hi], 64, 0), whole[lo:hi])
    torch.set_num_threads(before)


# ---- names


def test_alignment_by_hand():
    """Overlaps [[1, 3], [2, 2]] of new with old: 0 -> 1 and 1 -> 0 keep 5 clients, the other way round 3."""
    client = np.arange(8)
    new, old = np.array([0, 0, 0, 0, 1, 1, 1, 1]), np.array([0, 1, 1, 1, 0, 0, 1, 1], np.int32)
    np.testing.assert_array_equal(aligned(new, client, old), [1, 1, 1, 1, 0, 0, 0, 0])


def test_a_permutation_of_names_is_undone():
    rng = np.random.default_rng(0)
    old = rng.integers(0, 5, 40).astype(np.int32)
    np.testing.assert_array_equal(aligned(rng.permutation(5)[old], np.arange(40), old), old)


def test_names_when_there_are_more_or_fewer_groups_than_before():
    client = np.arange(6)
    old = np.array([2, 2, 2, 0, 0, 0], np.int32)
    np.testing.assert_array_equal(aligned(np.array([4, 4, 9, 1, 1, 5]), client, old), [2, 2, 1, 0, 0, 3])
    np.testing.assert_array_equal(aligned(np.zeros(6, int), client[:6], np.array([2, 2, 2, 2, 0, 0])), [2] * 6)


def test_names_when_some_are_new_or_unknown():
    """Clients 3 and 9 were in no group, client 50 is beyond the list; nothing known: by smallest client id."""
    client, old = np.array([1, 3, 7, 9, 50]), np.full(10, -1, np.int32)
    np.testing.assert_array_equal(aligned(np.array([3, 3, 1, 1, 0]), client, old), [0, 0, 1, 1, 2])
    old[[1, 7]] = 2, 0
    np.testing.assert_array_equal(aligned(np.array([3, 3, 1, 1, 0]), client, old), [2, 2, 0, 0, 1])
    np.testing.assert_array_equal(aligned(np.array([3, 1]), np.array([8, 4]), NOBODY), [1, 0])
    assert not len(aligned(NOBODY, NOBODY, old))


# ---- the map


def test_the_plane_of_a_flat_cloud_is_the_cloud():
    """Three numbers, all variance along two axes at right angles: 4 to 1."""
    x = np.array([[0, 4, 4], [0, -4, -4], [2, 0, 0], [-2, 0, 0]], np.float32) * 3 + np.float32(7)
    at, share = plane(x)
    far, near = 3 * 32**0.5, 6
    np.testing.assert_allclose(np.abs(at), [[far, 0], [far, 0], [0, near], [0, near]], atol=1e-4)
    np.testing.assert_allclose(share, [64 / 72, 8 / 72], atol=1e-5)
    assert (at.max(axis=0) >= -at.min(axis=0) - 1e-4).all() and at.dtype == np.float32


@pytest.mark.parametrize("shape", [(200, 33), (40, 500), (300, 200)])
def test_the_plane_is_that_of_the_principal_axes(shape):
    rng = np.random.default_rng(0)
    planted = rng.normal(size=(shape[0], 2)) * (9, 4) @ rng.normal(size=(2, shape[1]))
    x = standardised((planted + rng.normal(size=shape)).astype(np.float32))
    left, size, _ = np.linalg.svd(x.astype(np.float64) - x.mean(axis=0, dtype=np.float64), full_matrices=False)
    at, share = plane(x)
    np.testing.assert_allclose(np.abs(at), np.abs(left * size)[:, :2], atol=2e-3 * size[0])
    np.testing.assert_allclose(share, size[:2] ** 2 / (size**2).sum(), atol=1e-4)
    assert np.array_equal(plane(x)[0], at)
    assert all(at[np.abs(at[:, k]).argmax(), k] > 0 for k in (0, 1))


@pytest.mark.parametrize("x", [np.zeros((0, 5)), np.zeros((4, 0)), np.ones((4, 3)), np.ones((1, 3))])
def test_the_plane_of_nothing_is_a_point(x):
    at, share = plane(x.astype(np.float32))
    assert at.shape == (len(x), 2) and not at.any() and not share.any()


def test_the_plane_of_one_number_is_a_line():
    at, share = plane(np.array([[-1.0], [0.0], [4.0]], np.float32))
    np.testing.assert_allclose(at, [[-2, 0], [-1, 0], [3, 0]], atol=1e-6)
    np.testing.assert_allclose(share, [1, 0], atol=1e-6)
