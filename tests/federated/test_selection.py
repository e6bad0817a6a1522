"""Which round is reported: chosen on the test set where a protocol does that, and by several metrics at once."""

import numpy as np
import pytest

from fedray.data.protocols import rules_of
from fedray.evaluation.metrics import MetricSums
from fedray.federated import rounds
from fedray.federated.aggregate import ZERO, merge, sum_scalars
from fedray.federated.reports import TrainReport
from fedray.methods import build
from tests.helpers import FCF, METHODS, run, tiny_config, tiny_data

TWO = {"protocol": "paper/gfmfr", "k": [5], "options": {"select_on": ["hr_at_5", "ndcg_at_5"]}}


class Scripted:
    """Two clients with the same values; `script[r - 1]` is what each split and metric is after round r.

    What is kept under a name is the round; `per_client` gives the kept round's test values, from the same script."""

    clients = np.arange(2)

    def __init__(self, script):
        self.script, self.kept, self.splits, self.round = script, {}, [], 0

    def train(self, broadcast, limit, targets=None):
        self.round = broadcast.round + 1
        return TrainReport(merge(ZERO, sum_scalars({"loss": np.ones(2), "clients": np.ones(2)})), 2, 0, {})

    def sums(self, round_, split):
        both = {name: np.full(2, value) for name, value in self.script[round_ - 1][split].items()}
        return MetricSums.of(both, np.ones(2, np.int64))

    def evaluate(self, broadcast, splits, which):
        self.splits.append(splits)
        return {s: self.sums(self.round, s) for s in splits}, {"evaluate": 0.1}

    def keep_best(self, which="best"):
        self.kept[which] = self.round

    def per_client(self, broadcast, which="best"):
        assert self.kept[which] == broadcast.round
        found = self.sums(broadcast.round, "test")
        return found, {"client": np.arange(2), **{k: np.full(2, v) for k, v in found.means().items()}}


def play(script, train=None, **evaluation):
    """(Outcome, the fake, reports) of a run over the script."""
    fake = Scripted(script)
    config = tiny_config(FCF, {"rounds": len(script), **(train or {})}, evaluation=evaluation)
    state, reports = rounds.start(config, build(config, 4)), []
    while not rounds.finished(state):
        state, report = rounds.step(state, fake)
        reports.append(report)
    return rounds.finish(state, fake), fake, reports


def one(valid, test):
    """A script of HR@10 alone."""
    return [{"valid": {"hr_at_10": v}, "test": {"hr_at_10": t}} for v, t in zip(valid, test, strict=True)]


def two(*values):
    """(validation HR, validation NDCG, test HR, test NDCG) per round, all at 5."""
    names = ("hr_at_5", "ndcg_at_5")
    return [{"valid": dict(zip(names, v[:2])), "test": dict(zip(names, v[2:]))} for v in values]


def test_fedrap_chooses_by_the_test_set_and_the_last_of_a_tie():
    script = one(valid=[0.9, 0.5, 0.1, 0.2], test=[0.1, 0.7, 0.7, 0.3])
    outcome, fake, _ = play(script, protocol="paper/fedrap", k=[10])
    assert (outcome.best_round, outcome.test["hr_at_10"], outcome.validation["hr_at_10"]) == pytest.approx(
        (3, 0.7, 0.1)
    )
    assert fake.splits == [("valid", "test")] * 4
    honest = play(script, protocol="paper/fedrap", k=[10], options={"select_split": "valid"})[0]
    assert (honest.best_round, honest.test["hr_at_10"]) == pytest.approx((1, 0.1))


def test_any_protocol_that_selects_on_test_scores_it_every_round():
    script = one(valid=[0.9, 0.5], test=[0.1, 0.7])
    options = {"select_split": "test", "select_on": "hr_at_10"}
    outcome, fake, _ = play(script, k=[10], options=options)
    assert outcome.best_round == 2 and fake.splits == [("valid", "test")] * 2


def test_two_metrics_report_the_mean_of_their_rounds():
    script = two((0.5, 0.1, 0.40, 0.20), (0.3, 0.4, 0.60, 0.10), (0.2, 0.3, 0.99, 0.99))
    outcome, fake, _ = play(script, **TWO)
    assert outcome.rounds == {"hr_at_5": 1, "ndcg_at_5": 2} and fake.kept == {"best": 1, "ndcg_at_5": 2}
    assert outcome.best_round == 1
    assert outcome.test == pytest.approx({"hr_at_5": 0.5, "ndcg_at_5": 0.15})
    assert outcome.validation == pytest.approx({"hr_at_5": 0.4, "ndcg_at_5": 0.25})
    assert outcome.users["client"].tolist() == [0, 1]
    assert outcome.users["hr_at_5"] == pytest.approx([0.5, 0.5])


def test_two_metrics_that_agree_are_one_round():
    script = two((0.1, 0.1, 0.3, 0.2), (0.5, 0.4, 0.7, 0.6), (0.5, 0.4, 0.9, 0.9))
    outcome, _, _ = play(script, **TWO)
    assert outcome.rounds == {"hr_at_5": 2, "ndcg_at_5": 2}
    assert outcome.test == pytest.approx({"hr_at_5": 0.7, "ndcg_at_5": 0.6})


def test_patience_waits_for_either_metric():
    """The second metric improves in round 3, so two validations without a new best end it after round 5."""
    rest = [(0.1, 0.1, 0, 0)] * 5
    script = two((0.5, 0.1, 0, 0), (0.4, 0.1, 0, 0), (0.4, 0.2, 0, 0), *rest)
    assert len(play(script, {"patience": 2}, **TWO)[2]) == 5


@pytest.mark.parametrize("name", METHODS)
def test_a_whole_run_reports_the_mean_of_what_it_scored_on_the_way(name):
    """The kept states give the very test metrics that the rounds had when they were current."""
    config = tiny_config(METHODS[name], {"rounds": 6, "clients_per_round": 0.5}, evaluation=TWO)
    state, reports, outcome, _ = run(config, tiny_data())
    at = outcome.rounds
    assert at == {m: state.kept[m].round for m in ("hr_at_5", "ndcg_at_5")}
    for metric in ("hr_at_5", "ndcg_at_5", "mrr_at_5"):
        scored = [reports[at[m] - 1].metrics[f"test/{metric}"] for m in at]
        assert outcome.test[metric] == sum(scored) / 2
    for m in at:
        by_round = [r.metrics[f"val/{m}"] for r in reports]
        assert by_round[at[m] - 1] == max(by_round)
    assert np.mean(outcome.users["ndcg_at_5"]) == pytest.approx(outcome.test["ndcg_at_5"], abs=1e-7)


def test_a_single_metric_reports_its_round_to_the_bit():
    options = {"select_on": ["ndcg_at_5"]}
    single = run(tiny_config(FCF, {"rounds": 4}, evaluation={**TWO, "options": options}), tiny_data())
    at = single[2].best_round
    assert single[2].rounds == {"ndcg_at_5": at}
    assert single[2].test["ndcg_at_5"] == single[1][at - 1].metrics["test/ndcg_at_5"]


def test_the_rules_of_a_run_are_those_of_its_options():
    assert rules_of(tiny_config(FCF, evaluation=TWO).evaluation).select_on == ("hr_at_5", "ndcg_at_5")
