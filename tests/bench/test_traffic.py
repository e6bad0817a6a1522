"""The traffic that the README's table shows, against numbers worked out by hand."""

import pytest

from fedray.config import make_config
from fedray.methods import build
from tests.bench import traffic
from tests.helpers import tiny_data

M, D, N = 12, 4, 3
DATA = tiny_data(clients=N, items=M, longest=6)
FEATURES = traffic.random_features(M, width=5)
ALL, OWN = {"negatives": 300}, {"negatives": 0}
"""So many negatives that every client meets every item; none, so that it meets its training items alone."""
HIDDEN = 2 * D * 64 + 64 + 64 * 32 + 32 + 32 * 16 + 16 + 16 + 1


def sent(backbone, train):
    config = traffic.config_of(backbone, {"source": "synthetic"}, train, dim=D, router_dim=7)
    return traffic.counted(config, DATA, FEATURES)


@pytest.mark.parametrize(
    ("backbone", "tables", "dense"),
    [("fcf", 3, 0), ("fedavg", 3, 0), ("pfedrec", 3, 0), ("fedrap", 3, 0), ("fedncf", 4, HIDDEN)],
)
def test_views_go_down_and_the_rows_of_items_met_come_up_with_their_ids(backbone, tables, dense):
    everything = sent(backbone, ALL)
    assert everything.down == tables * M * D + dense
    assert everything.up == M * (1 + tables * D) + dense
    met = DATA.train.lengths().sum() / N
    assert sent(backbone, OWN).up == pytest.approx(met * (1 + tables * D) + dense)


def test_gpfedrec_sends_its_table_whole_both_ways_and_a_target_down():
    found = sent("gpfedrec", ALL)
    assert found.down == 3 * M * D + 2 * M * D
    assert found.up == M * (1 + 3 * D) + M * D


@pytest.mark.parametrize(
    ("backbone", "kept"),
    [(b, 3 * 64 * 30 + 12_547) for b in ("fcf", "fedavg", "pfedrec")]
    + [("fedrap", 4 * 64 * 30 + 12_547), ("fedncf", 4 * 64 * 30 + 12_547 + 10_881)],
)
def test_a_client_keeps_what_the_paper_counts(backbone, kept):
    """FedNCF: 64 fewer than the paper's layers, which have a product branch, and no user vectors."""
    config = traffic.config_of(backbone, {"source": "synthetic"})
    method = build(config, 30, traffic.random_features(30))
    assert traffic.parameters(method) == kept


def test_the_authors_and_the_papers_numbers_on_ku():
    assert traffic.authors(560) == 455_555
    assert traffic.papers(560) == (107_520, 192_128)
    assert traffic.line("ku", "fcf", 560, traffic.Sent(107_520, 1000, 120_067)).count("| 120") == 2
    assert make_config({"data": traffic.KU | {"path": "x"}}).data.split == "given"
