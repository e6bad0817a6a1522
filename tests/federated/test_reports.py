"""A host's report that cannot be the sum of its clients' uploads, or is of another round, is refused before the sum."""

from dataclasses import replace

import numpy as np
import pytest

from fedray.errors import BadReportError
from fedray.federated import clients, rounds
from fedray.federated.aggregate import ZERO, RowSum
from fedray.federated.cohort import EVERYONE
from fedray.federated.rejections import Refused
from fedray.federated.reports import TrainReport, check_report
from tests.helpers import FCF, executor, tiny_config, tiny_data, tiny_features

DATA, FEATURES, TABLE = tiny_data(clients=6), tiny_features(text=6), "item_embedding"
FEDNCF = {"backbone": {"name": "fedncf", "dim": 5}}
GPFEDREC = {"backbone": {"name": "gpfedrec", "dim": 5, "item_lr_scale": 10.0, "user_lr_scale": 10.0}}
GFMFR = {**FCF, "plugins": {"gfmfr": {"groups": 3, "group_dim": 5, "fit_epochs": 2}}}
METHODS = {"fcf": FCF, "fedncf": FEDNCF, "gpfedrec": GPFEDREC, "gfmfr": GFMFR}


def trained(name, held=DATA):
    """(method, broadcast, the host's clients, its report)."""
    host = executor(tiny_config(METHODS[name]), held, features=FEATURES)._hosts[0]
    broadcast = rounds.start(host.config, host.method).broadcast
    return host.method, broadcast, host.data.client, clients.train(host, broadcast, EVERYONE)[1]


@pytest.mark.parametrize("name", METHODS)
def test_a_sound_report_is_taken_as_it_is(name):
    method, broadcast, who, report = trained(name)
    assert check_report(method, broadcast, who, report) is report
    nobody = TrainReport(ZERO, 0, 0, {}, rejected={"norm": Refused(6, (0, 1, 2, 3, 4))}, round=0)
    assert check_report(method, broadcast, who, nobody) is nobody


def rows_of(report, **new):
    sums = report.total.rows[TABLE]
    return {"n_rows": sums.n_rows, "ids": sums.ids, "values": sums.values, **new}


def with_rows(report, **new):
    return replace(report, total=replace(report.total, rows={TABLE: RowSum(**rows_of(report, **new))}))


def with_list(report, which, **tables):
    (part,) = getattr(report, which)
    client = tables.pop("client", part.client)
    return replace(report, **{which: (part._replace(client=client, tables={**part.tables, **tables}),)})


def total_of(report, **new):
    return replace(report, total=replace(report.total, **new))


BAD = {
    "late": ("fcf", lambda r: replace(r, round=7), "round 7"),
    "of nobody's round": ("fcf", lambda r: replace(r, round=-1), "round -1"),
    "too many": ("fcf", lambda r: replace(r, clients=7), "7 clients"),
    "less than none": ("fcf", lambda r: replace(r, clients=-1), "-1 clients"),
    "refused beside": ("fcf", lambda r: replace(r, rejected={"norm": Refused(1, (3,))}), "1 refused"),
    "refused none": ("fcf", lambda r: replace(r, rejected={"norm": Refused(0, ())}), "0 refused"),
    "unknown reason": ("fcf", lambda r: replace(r, clients=5, rejected={"mood": Refused(1, (3,))}), "mood"),
    "bytes": ("fcf", lambda r: replace(r, bytes_up=-4), "-4 bytes"),
    "other count": ("fcf", lambda r: replace(r, clients=5), "losses of 6 clients"),
    "no table": ("fcf", lambda r: total_of(r, rows={}), "sums of \\[\\]"),
    "sums of nobody": ("fcf", lambda r: replace(r, clients=0), "sums of"),
    "undeclared": ("fcf", lambda r: total_of(r, dense={"user": np.zeros(3, np.int64)}), "user"),
    "no peak": ("fcf", lambda r: total_of(r, peak={}), "peaks"),
    "low peak": ("fcf", lambda r: total_of(r, peak={TABLE: 5}), "peak"),
    "high peak": ("fcf", lambda r: total_of(r, peak={TABLE: 1 << 62}), "peak"),
    "smallest int": ("fcf", lambda r: with_rows(r, values=np.full_like(r.total.rows[TABLE].values, -(2**63))), "peak"),
    "floats": ("fcf", lambda r: with_rows(r, values=r.total.rows[TABLE].values * 1.0), "float64"),
    "narrow": ("fcf", lambda r: with_rows(r, values=r.total.rows[TABLE].values[:, :3]), "shape"),
    "fewer rows": ("fcf", lambda r: with_rows(r, n_rows=4), "rows"),
    "row ids": ("fcf", lambda r: with_rows(r, ids=np.array([3, 60]), values=np.zeros((2, 8), np.int64)), "ascending"),
    "row twice": ("fcf", lambda r: with_rows(r, ids=np.array([3, 3]), values=np.zeros((2, 8), np.int64)), "ascending"),
    "dense": ("fedncf", lambda r: total_of(r, dense={k: v[:1] for k, v in r.total.dense.items()}), "shape"),
    "no uploads": ("gpfedrec", lambda r: replace(r, uploads=()), "0 lists of uploads"),
    "uploads": ("fcf", lambda r: replace(r, uploads=trained("gpfedrec")[3].uploads), "1 lists of uploads"),
    "twice": ("gpfedrec", lambda r: with_list(r, "uploads", client=np.array([0, 1, 2, 3, 4, 4])), "each once"),
    "others": ("gpfedrec", lambda r: with_list(r, "uploads", client=np.arange(1, 7)), "another host"),
    "named": ("gpfedrec", lambda r: with_list(r, "uploads", user=np.zeros((6, 1))), "user"),
    "wide": ("gpfedrec", lambda r: with_list(r, "uploads", **{TABLE: np.zeros((6, 60, 6), np.float32)}), "of shape"),
    "nan": ("gpfedrec", lambda r: with_list(r, "uploads", **{TABLE: np.full((6, 60, 5), np.nan)}), "not finite"),
    "no vectors": ("gfmfr", lambda r: replace(r, vectors=()), "0 lists of vectors"),
    "vector": ("gfmfr", lambda r: with_list(r, "vectors", vector=np.full((6, 9), np.inf)), "not finite"),
    "flat": ("gfmfr", lambda r: with_list(r, "vectors", vector=np.zeros(6)), "of shape"),
}


@pytest.mark.parametrize(("name", "spoilt", "match"), BAD.values(), ids=BAD)
def test_one_that_cannot_be_is_refused_by_name(name, spoilt, match):
    method, broadcast, who, report = trained(name)
    with pytest.raises(BadReportError, match=match) as error:
        check_report(method, broadcast, who, spoilt(report))
    assert "round 0, the host of clients [0, 1, 2, 3, 4]" in str(error.value)


def test_nothing_of_a_refused_report_reaches_the_sum_or_the_hosts(monkeypatch):
    where = executor(tiny_config(FCF), DATA, [[0, 1, 2], [3, 4, 5]])
    late, real = {}, clients.train

    def trains(host, broadcast, limit, targets):
        """The second host says in the second round again what it said in the first."""
        host_, report = real(host, broadcast, limit, targets)
        if 4 in host.data.client:
            report = late.setdefault("report", report)
        return host_, report

    monkeypatch.setattr(clients, "train", trains)
    state, _ = rounds.step(rounds.start(where._hosts[0].config, where._hosts[0].method), where)
    after = list(where._hosts)
    with pytest.raises(BadReportError, match="round 1, the host of clients \\[3, 4, 5\\]: its report has round 0"):
        rounds.step(state, where)
    assert all(a is b for a, b in zip(where._hosts, after, strict=True))
