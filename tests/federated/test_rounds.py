"""Selection, patience, when the test set is scored, and bytes: with a scripted executor where the numbers matter."""

import math

import numpy as np
import pytest

from fedray.evaluation.metrics import MetricSums
from fedray.federated import rounds
from fedray.federated.aggregate import ZERO, merge, sum_scalars
from fedray.federated.reports import TrainReport
from fedray.methods import build
from tests.evaluation.naive import clients
from tests.helpers import FCF, METHODS, executor, run, tiny_config, tiny_data


class Scripted:
    """Three clients: validation after round r is `script[r - 1]` (NaN: nobody has targets), the test metric 0.01 r."""

    clients = np.arange(3)

    def __init__(self, script, metric="ndcg_at_10"):
        self.script, self.metric, self.asked, self.kept = script, metric, [], []
        self.round = 0

    def train(self, broadcast, limit, targets=None):
        self.round = broadcast.round + 1
        losses = {"loss": np.array([1.0, 2.0, 6.0]), "clients": np.ones(3)}
        return TrainReport(merge(ZERO, sum_scalars(losses)), 3, 100, {"train": 0.5})

    def evaluate(self, broadcast, splits, which):
        self.asked.append((broadcast.round, splits, which))
        values = {"valid": self.script[broadcast.round - 1], "test": broadcast.round / 100}
        counted = {s: np.full(3, not math.isnan(values[s]), np.int64) for s in splits}
        return {s: MetricSums.of({self.metric: np.full(3, values[s])}, n) for s, n in counted.items()}, {
            "evaluate": 0.1
        }

    def keep_best(self, which="best"):
        self.kept.append(self.round)

    def per_client(self, broadcast, which="best"):
        sums = self.evaluate(broadcast, ("test",), which)[0]["test"]
        return sums, {"client": np.arange(3), self.metric: np.full(3, broadcast.round / 100)}

    def local_only(self, begun, n_rounds):
        one = np.ones(2, np.int64)
        return {s: MetricSums.of({self.metric: np.array([0.0, n_rounds / 4])}, one) for s in ("valid", "test")}


def scripted(script, protocol="clean", train=None, **evaluation):
    """(last Run, reports, the fake) of a run over the script."""
    fake = Scripted(script, "hr_at_10" if protocol == "paper/pfedrec" else "ndcg_at_10")
    schedule = {"rounds": len(script), **(train or {})}
    config = tiny_config(FCF, schedule, evaluation={"protocol": protocol, "k": [10], **evaluation})
    state, reports = rounds.start(config, build(config, 4)), []
    while not rounds.finished(state):
        state, report = rounds.step(state, fake)
        reports.append(report)
    return state, reports, fake


@pytest.mark.parametrize(
    ("protocol", "script", "best"),
    [
        ("clean", [0.1, 0.3, 0.2], 2),
        ("clean", [0.1, 0.3, 0.3], 2),  # the first of a tie
        ("paper/pfedrec", [0.1, 0.3, 0.3], 3),  # the last of a tie
        ("paper/pfedrec", [0.3, 0.3, 0.2], 2),
        ("clean", [0.5], 1),
        ("clean", [0.0, 0.0], 1),
        ("clean", [math.nan, 0.1, 0.2], 3),  # a value beats none
    ],
)
def test_validation_selects_and_the_protocol_breaks_ties(protocol, script, best):
    state, _, fake = scripted(script, protocol)
    assert state.best.round == fake.kept[-1] == best
    assert rounds.finish(state, fake).best_round == best


def test_the_test_metric_plays_no_part_in_the_choice():
    """Test rises every round; validation was best in the first."""
    state, reports, fake = scripted([0.9, 0.5, 0.4], test="every_round")
    assert [r.metrics["test/ndcg_at_10"] for r in reports] == pytest.approx([0.01, 0.02, 0.03])
    assert state.best.round == 1
    assert rounds.finish(state, fake).test["ndcg_at_10"] == pytest.approx(0.01)


def test_finish_gives_the_best_rounds_numbers_not_the_last_ones():
    state, _, fake = scripted([0.2, 0.6, 0.1, 0.3])
    outcome = rounds.finish(state, fake)
    assert outcome.validation["ndcg_at_10"] == pytest.approx(0.6)
    assert outcome.test["ndcg_at_10"] == pytest.approx(0.02)
    assert (outcome.bytes_up, outcome.best_round) == (400, 2)
    assert outcome.users["ndcg_at_10"].tolist() == [0.02] * 3


def test_clean_scores_the_test_set_once_and_from_the_best_snapshot():
    state, reports, fake = scripted([0.2, 0.6, 0.1])
    assert not [m for r in reports for m in r.metrics if m.startswith("test/")]
    assert [splits for _, splits, _ in fake.asked] == [("valid",)] * 3
    rounds.finish(state, fake)
    assert fake.asked[3:] == [(2, ("test",), "best")]


def test_the_paper_protocol_scores_the_test_set_at_every_validation():
    state, reports, fake = scripted([0.2, 0.6, 0.1], "paper/pfedrec")
    rounds.finish(state, fake)
    every = [(r, ("valid", "test"), "current") for r in (1, 2, 3)]
    assert fake.asked == [*every, (2, ("test",), "best")]  # once more, for each client's own
    assert [r.metrics["test/hr_at_10"] for r in reports] == pytest.approx([0.01, 0.02, 0.03])


def test_the_setting_overrules_the_protocol():
    _, _, fake = scripted([0.2, 0.6], "paper/pfedrec", test="selected")
    assert [splits for _, splits, _ in fake.asked] == [("valid",)] * 2


@pytest.mark.parametrize(
    ("patience", "script", "ran"),
    [
        (0, [0.5, 0.1, 0.1, 0.1, 0.1], 5),  # off
        (2, [0.5, 0.1, 0.1, 0.9, 0.9], 3),
        (2, [0.5, 0.1, 0.6, 0.1, 0.9], 5),  # a new best starts the count again
        (1, [0.5, 0.5, 0.9, 0.9, 0.9], 2),  # a tie is no new best where the first wins it
    ],
)
def test_patience_counts_validations_without_a_new_best(patience, script, ran):
    _, reports, _ = scripted(script, train={"patience": patience})
    assert len(reports) == ran


def test_a_tie_resets_patience_where_the_last_wins_it():
    _, reports, _ = scripted([0.5, 0.5, 0.5, 0.1, 0.9], "paper/pfedrec", {"patience": 1})
    assert len(reports) == 4


@pytest.mark.parametrize(
    ("every", "n", "validated"), [(1, 3, [1, 2, 3]), (2, 5, [2, 4, 5]), (3, 6, [3, 6]), (9, 4, [4])]
)
def test_validation_comes_every_so_often_and_always_after_the_last_round(every, n, validated):
    _, reports, fake = scripted([0.1] * n, every=every)
    assert [r for r, _, _ in fake.asked] == validated
    assert [r.round for r in reports if "val/ndcg_at_10" in r.metrics] == validated


def test_patience_is_counted_in_validations_not_rounds():
    _, reports, _ = scripted([0.5] * 10, train={"patience": 2}, every=2)
    assert len(reports) == 6


def test_a_report_holds_the_mean_loss_over_clients_and_the_seconds_of_each_stage():
    _, reports, _ = scripted([0.1])
    assert reports[0].metrics["train/loss"] == 3.0
    assert {"train", "evaluate", "server", "round"} <= reports[0].seconds.keys()
    assert reports[0].clients_ok == 3


def test_local_only_is_reported_with_its_standard_error():
    state, _, fake = scripted([0.1, 0.2], local_only=True)
    outcome = rounds.finish(state, fake)
    assert outcome.local_only["test"]["ndcg_at_10"] == 0.25  # of 0 and 2 rounds / 4
    assert outcome.local_only_errors["ndcg_at_10"] == pytest.approx(0.25)


def test_bytes_of_a_round_by_hand():
    """M 5, d 8. Down: 2 clients x 5 x 8 floats. Up: 3 + 1 touched rows, an id and 8 floats each; with decay
    one factor per client more."""
    data = clients([[0, 1, 4], [2]], [[], [0]], [[], [1]], 5)
    final, reports, outcome, _ = run(tiny_config(FCF, {"negatives": 0, "rounds": 2}), data)
    down, up = 2 * 5 * 8 * 4, (3 + 1) * (4 + 8 * 4)
    assert [(r.bytes_down, r.bytes_up) for r in reports] == [(down, up)] * 2
    decayed = run(tiny_config(FCF, {"negatives": 0, "rounds": 1, "weight_decay": 0.1}), data)[1]
    assert decayed[0].bytes_up == up + 2 * 4
    assert final.total_bytes == (outcome.bytes_down, outcome.bytes_up) == (2 * down, 2 * up)


def test_only_the_cohort_is_sent_anything():
    data = clients([[0], [1], [2], [3]], [[4]] * 4, [[0]] * 4, 5)
    _, reports, _, _ = run(tiny_config(FCF, {"negatives": 0, "clients_per_round": 0.5}), data)
    assert [(r.clients_ok, r.bytes_down, r.bytes_up) for r in reports] == [(2, 2 * 160, 2 * 36)] * 3


@pytest.mark.parametrize("name", METHODS)
def test_the_test_score_of_the_selected_round_equals_stopping_there(name):
    """`selected` scores a snapshot at the end; `every_round` scored it when it was current."""
    data = tiny_data()
    schedule = {"rounds": 6, "clients_per_round": 0.5}
    selected = run(tiny_config(METHODS[name], schedule, evaluation={"k": [5, 10]}), data)[2]
    every = run(tiny_config(METHODS[name], schedule, evaluation={"k": [5, 10], "test": "every_round"}), data)
    assert selected.test == every[2].test
    assert selected.best_round == every[2].best_round
    assert every[1][selected.best_round - 1].metrics["test/ndcg_at_10"] == selected.test["ndcg_at_10"]


@pytest.mark.parametrize("path", ["compiled", "vmap"])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    "data",
    [
        clients([[0]], [[]], [[]], 1),
        clients([[0, 1, 2], [0]], [[], [1]], [[], [2]], 3),
        clients([[0, 1]], [[2]], [[3]], 10),
        clients([[], []], [[1], [2]], [[3], [4]], 6),
    ],
    ids=["one item", "a client that knows every item", "one client", "nobody has training items"],
)
def test_the_smallest_federations_run_and_an_empty_host_changes_nothing(data, name, path):
    config = tiny_config(METHODS[name], {"path": path, "weight_decay": 1e-3})
    a, b = (run(config, data, parts)[0] for parts in (None, [np.zeros(0, np.int64), np.arange(len(data))]))
    assert np.isfinite(a.state.params["item_embedding"]).all()
    np.testing.assert_array_equal(a.state.params["item_embedding"], b.state.params["item_embedding"])


def test_a_cohort_without_training_items_leaves_the_state_alone():
    data = clients([[], []], [[1], [2]], [[3], [4]], 6)
    config = tiny_config(FCF)
    final, reports, _, where = run(config, data)
    np.testing.assert_array_equal(final.state.params["item_embedding"], final.method.init_server(0)["item_embedding"])
    assert [(r.clients_ok, r.bytes_down, r.bytes_up) for r in reports] == [(0, 0, 0)] * 3
    assert math.isnan(reports[0].metrics["train/loss"])
    assert executor(config, data).clients.tolist() == where.clients.tolist() == [0, 1]
