"""Who competes with a held-out item: each candidate rule by hand, on both splits."""

from dataclasses import replace

import numpy as np
import pytest

from fedray.data.negatives import shortlists
from fedray.data.protocols import PROTOCOLS
from fedray.evaluation.metrics import score_metrics, summed
from tests.evaluation.naive import clients, ragged
from tests.helpers import tiny_data

CLEAN = PROTOCOLS["clean"]
# One client, eight items, by score: 7 6 5 4 3 2 1 0. It trains on 7 and 1, validates on 6 and 4, tests on 5 and 2.
SCORES = np.arange(8, dtype=np.float32)[None]
DATA = clients([[1, 7]], [[4, 6]], [[2, 5]], 8)


def hits(ranking, split, scores=SCORES, data=DATA, others=None, **changes):
    """The ranks of the split's targets, read off recall."""
    rules, ks = replace(CLEAN, rankings=(ranking,), **changes), range(1, 9)
    found = summed(score_metrics(scores, data, split, rules, others, ks)).means()
    n = len((data.valid if split == "valid" else data.test).values)
    counts = [0, *(round(n * found[f"recall_at_{k}"]) for k in ks)]
    return [k for k in ks for _ in range(counts[k] - counts[k - 1])]


@pytest.mark.parametrize(
    ("ranking", "valid", "test"),
    [
        # valid: 6 5 4 3 2 0 -> 6 is 1st, 4 is 3rd. test: 5 3 2 0 -> 5 is 1st, 2 is 3rd.
        ("full", [1, 3], [1, 3]),
        # test: 6 5 4 3 2 0, the validation items compete -> 5 is 2nd, 2 is 5th.
        ("full_minus_train", [1, 3], [2, 5]),
        # valid: 6 4 3 0, the test items are out -> 6 is 1st, 4 is 2nd.
        ("full_minus_all", [1, 2], [1, 3]),
    ],
)
def test_full_rankings_by_hand(ranking, valid, test):
    assert (hits(ranking, "valid"), hits(ranking, "test")) == (valid, test)


def test_a_sampled_ranking_has_its_candidates_and_the_target_only():
    assert hits("sampled99", "test", others=ragged([0, 3])) == [1, 2]


@pytest.mark.parametrize("ties", ["pessimistic", "index", "random"])
def test_item_0_comes_last_where_it_is_masked(ties):
    """Items 0 to 3 with scores 9 8 7 6. Client 0 holds out item 1, client 1 item 0."""
    scores = np.tile(np.array([9, 8, 7, 6], np.float32), (2, 1))
    data = clients([[], []], [[], []], [[1], [0]], 4)
    assert hits("full", "test", scores, data, ties=ties) == [1, 2]
    assert hits("full", "test", scores, data, ties=ties, mask_item0=True) == [1, 4]
    others = ragged([0, 2], [1, 2])
    assert hits("sampled99", "test", scores, data, others, ties=ties, mask_item0=True) == [1, 3]
    np.testing.assert_array_equal(scores[:, 0], 9)  # the caller's scores are left alone


def test_shared_candidates_are_one_list_and_else_two():
    data = tiny_data(clients=6, items=300)
    rules = replace(CLEAN, rankings=("sampled99",))
    own, shared = shortlists(0, data, rules), shortlists(0, data, replace(rules, share_candidates=True))
    for c in range(6):
        assert shared["valid"].row(c).tolist() == shared["test"].row(c).tolist() == own["valid"].row(c).tolist()
        assert not set(own["valid"].row(c)) & set(own["test"].row(c))
    assert PROTOCOLS["paper/fedrap"].share_candidates and not PROTOCOLS["paper/pfedrec"].share_candidates
    assert shortlists(0, data, PROTOCOLS["paper/fedvlr"]) == {}
