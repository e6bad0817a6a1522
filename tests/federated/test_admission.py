"""One bad client equals no client: a run in which a client's updates are poisoned in some rounds, and one in which it
was left out of the cohort in those, are the same to the last bit, but for what counts the refusals."""

from dataclasses import replace

import numpy as np
import pytest

from fedray.errors import AggregateOverflowError, BadReportError, NonFiniteLossError, RejectedUpdatesError
from fedray.federated import client_store, clients, rounds
from fedray.federated.cohort import EVERYONE
from fedray.federated.rejections import NAMED, REASONS, Refused, both, require_enough
from tests.helpers import FCF, PFEDREC, executor, run, tiny_config, tiny_data, tiny_features

DATA, FEATURES = tiny_data(clients=16), tiny_features(text=6)
BAD, WHEN = 5, (0, 2)
TABLE = "item_embedding"
FEDRAP = {"backbone": {"name": "fedrap", "dim": 5, "item_lr": 0.5}}
FEDNCF = {"backbone": {"name": "fedncf", "dim": 5}}
GPFEDREC = {"backbone": {"name": "gpfedrec", "dim": 5, "item_lr_scale": 10.0, "user_lr_scale": 10.0}}
GFMFR = {**FCF, "plugins": {"gfmfr": {"groups": 3, "group_dim": 5, "fit_epochs": 2, "ratio": "client"}}}
FEDVLR = {**FCF, "plugins": {"fedvlr": {"gain": 1.0}}}
CLIPPED = {**FCF, "plugins": {"laplace_ldp": {"scale": 0.01, "clip": 0.5}}}
METHODS = {
    "fcf": FCF,
    "pfedrec": PFEDREC,
    "fedrap": FEDRAP,
    "fedncf": FEDNCF,
    "gpfedrec": GPFEDREC,
    "gfmfr": GFMFR,
    "fedvlr": FEDVLR,
    "clipped": CLIPPED,
}
EACH = pytest.mark.parametrize("name", METHODS)
TWO = [np.arange(0, 16, 2), np.arange(1, 16, 2)[::-1]]


def config_of(name, **train):
    return tiny_config(METHODS[name], {"rounds": 4, **train})


def poisoned(patch, poison, who=(BAD,), when=WHEN):
    """`poison(result, samples, client's place, its rows)` changes what those clients come to in those rounds."""
    real = clients.train_clients

    def bad(method, config, round_, start, samples, device):
        result = real(method, config, round_, start, samples, device)
        for i in np.flatnonzero(np.isin(samples.client, who)) if round_ in when else ():
            result = poison(result, samples, i, slice(*samples.row_ptr[i : i + 2])) or result
        return result

    patch.setattr(clients, "train_clients", bad)


def absent(patch, who=(BAD,), when=WHEN):
    real = clients.members

    def those(seed, round_, client, limit):
        return real(seed, round_, client, limit) & ~(np.isin(client, who) & (round_ in when))

    patch.setattr(clients, "members", those)


def told(found):
    """All a run says: state, reports, outcome and what every client keeps; and apart from it the refusals."""
    state, reports, outcome, where = found
    each, refused = [], []
    for r in reports:
        metrics = {k: v for k, v in r.metrics.items() if not k.startswith("fed/rejected")}
        each.append((r.round, metrics, r.bytes_down, r.bytes_up, r.clients_ok))
        refused.append((r.clients_rejected, {k: v for k, v in r.metrics.items() if k not in metrics}))
    stores = {}
    for host in where._hosts:
        for kind, store in (("now", host.store), ("best", host.best)):
            file = {"client": host.data.client, **client_store.to_arrays(store)}
            for c in host.data.client:
                alone = client_store.to_arrays(client_store.from_files([file], np.array([c])))
                stores |= {(kind, int(c), k): v for k, v in alone.items() if "base" not in k}
    return (state.state, state.targets, each, outcome, outcome.users, stores), refused


def assert_same(a, b):
    """Name by name, bit by bit."""
    assert type(a) is type(b)
    if isinstance(a, np.ndarray):
        assert a.dtype.kind == b.dtype.kind
        np.testing.assert_array_equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for k in a:
            assert_same(a[k], b[k])
    elif isinstance(a, tuple | list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif hasattr(a, "__dataclass_fields__"):
        for k in a.__dataclass_fields__:
            assert_same(getattr(a, k), getattr(b, k))
    elif not callable(a):
        assert a == b or (a != a and b != b)


def runs(config, poison, parts=None, bad_parts=None, **which):
    """What the run with the poison says, and the one without the client."""
    with pytest.MonkeyPatch.context() as patch:
        poisoned(patch, poison, **which)
        bad, refused = told(run(config, DATA, bad_parts or parts, FEATURES))
    with pytest.MonkeyPatch.context() as patch:
        absent(patch, **which)
        without, nobody = told(run(config, DATA, parts, FEATURES))
    assert not any(n for n, _ in nobody)
    return bad, without, refused


def law(config, poison, reason, parts=None, **which):
    bad, without, refused = runs(config, poison, parts, **which)
    assert_same(bad, without)
    n = len(which.get("who", (BAD,)))
    hit = {r: which.get("when", WHEN) for r in range(config.train.rounds)}
    expected = [(n, {f"fed/rejected_{reason}": float(n)}) if r in hit[r] else (0, {}) for r in hit]
    assert refused == expected


def everywhere(value):
    """The value at one place of all that the client has."""

    def poison(result, samples, i, rows):
        for v in result.rows.values():
            v[rows.start] = value
        for part in (result.dense, result.private):
            for v in part.values():
                v[i] = value

    return poison


@EACH
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30], ids=str)
def test_nan_infinity_and_1e30_are_no_client(name, value):
    law(config_of(name), everywhere(value), "out_of_range" if value == 1e30 else "not_finite")


@EACH
def test_nor_are_they_in_a_host_beside_another(name):
    """Where one host refuses somebody, and one does not, the sums are those of one host with all."""
    config = config_of(name)
    bad, without, _ = runs(config, everywhere(np.nan), None, TWO)
    bad, without = list(bad), list(without)
    assert_same(bad, without)


@EACH
def test_nor_are_they_where_some_take_part_at_a_time(name):
    config = config_of(name, clients_per_round=0.6, weight_decay=0.0 if name == "clipped" else 1e-4)
    bad, without, refused = runs(config, everywhere(-np.inf), who=(2, BAD, 9), when=range(4))
    assert_same(bad, without)
    assert 0 < sum(n for n, _ in refused) < 12


def in_rows(result, samples, i, rows):
    result.rows[TABLE][rows.stop - 1, -1] = np.nan


def in_private(result, samples, i, rows):
    next(iter(result.private.values()))[i] = np.nan


def in_dense(result, samples, i, rows):
    list(result.dense.values())[-1][i].flat[-1] = -np.inf


def in_loss(result, samples, i, rows):
    result.loss[i] = np.nan


def in_own_rows(result, samples, i, rows):
    result.rows["personal_item_embedding"][rows.start, 0] = np.nan


def in_decay(result, samples, i, rows):
    result.decay[TABLE][i] = np.inf


def in_ratio(result, samples, i, rows):
    result.private["gfmfr/ratio"][i] = np.inf


ONE_NUMBER = [
    ("fcf", in_rows),
    ("pfedrec", in_rows),
    ("gpfedrec", in_rows),
    ("fcf", in_private),
    ("fedrap", in_loss),
    ("fedrap", in_own_rows),
    ("fedncf", in_dense),
    ("gfmfr", in_private),
    ("gfmfr", in_ratio),
    ("gpfedrec", in_private),
    ("fcf", in_decay),
]


@pytest.mark.parametrize(("name", "poison"), ONE_NUMBER, ids=lambda x: getattr(x, "__name__", x))
def test_one_number_anywhere_is_enough(name, poison):
    law(config_of(name), poison, "not_finite")


def nowhere(result, samples, i, rows):
    samples.rows[rows.stop - 1] = DATA.n_items


def negative(result, samples, i, rows):
    samples.rows[rows.start] = -1


def huge(result, samples, i, rows):
    samples.rows[rows] = np.iinfo(samples.rows.dtype).max


def twice(result, samples, i, rows):
    samples.rows[rows.start + 1] = samples.rows[rows.start]


def swapped(result, samples, i, rows):
    samples.rows[rows] = samples.rows[rows][::-1].copy()


@pytest.mark.parametrize("poison", [nowhere, negative, huge, twice, swapped])
@pytest.mark.parametrize("name", ["fcf", "pfedrec", "gpfedrec", "gfmfr"])
def test_wrong_and_repeated_rows_are_no_client(name, poison):
    law(config_of(name), poison, "rows")


def far(by):
    def poison(result, samples, i, rows):
        next(iter(result.rows.values()))[rows] += np.float32(by)

    return poison


@EACH
def test_a_norm_beyond_the_bound_is_no_client_and_one_below_it_is(name):
    law(config_of(name, max_update_norm=1e4), far(1e4), "norm")
    plain, bound = (told(run(config_of(name, max_update_norm=n), DATA, None, FEATURES)) for n in (0.0, 1e6))
    assert_same(plain, bound)


@pytest.mark.parametrize(("bound", "refused"), [(5.001, ()), (4.999, (BAD,))])
def test_the_norm_is_that_of_the_whole_update(bound, refused):
    """3 in one number of the table, 4 in one of a layer, and nothing else: 5."""
    config = config_of("fedncf", max_update_norm=bound)
    host = executor(config, DATA)._hosts[0]
    state = rounds.start(config, host.method)
    base = state.broadcast.params

    def poison(result, samples, i, rows):
        result.rows[TABLE][rows] = base[TABLE][samples.rows[rows]]
        result.rows[TABLE][rows.start, 0] += 3.0
        for k, v in result.dense.items():
            v[i] = base[k]
        result.dense["output_bias"][i] += 4.0

    with pytest.MonkeyPatch.context() as patch:
        poisoned(patch, poison)
        _, report = clients.train(host, state.broadcast, EVERYONE)
    assert sum((r.first for r in report.rejected.values()), ()) == refused
    assert report.clients == len(DATA) - len(refused)


def wide(result, samples, i, rows):
    table = result.rows[TABLE]
    return replace(result, rows={**result.rows, TABLE: np.concatenate([table, table[:, :1]], axis=1)})


def short(result, samples, i, rows):
    return replace(result, rows={**result.rows, TABLE: result.rows[TABLE][:-1]})


def doubled(result, samples, i, rows):
    return replace(result, private={k: v.astype(np.float64) for k, v in result.private.items()})


def missing(result, samples, i, rows):
    return replace(result, rows={})


@pytest.mark.parametrize("poison", [wide, short, doubled, missing])
@pytest.mark.parametrize("name", ["fcf", "pfedrec", "gpfedrec", "gfmfr"])
def test_a_wrong_shape_is_none_of_its_hosts_clients(name, poison):
    """Here its host has it alone, as every actor has in literal mode."""
    parts = [[BAD], np.delete(np.arange(16), BAD)]
    bad, without, refused = runs(config_of(name), poison, parts)
    assert_same(bad, without)
    assert refused[0] == (1, {"fed/rejected_shape": 1.0})


def test_a_wrong_shape_says_which_where_it_ends_the_run():
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RejectedUpdatesError) as error:
        poisoned(patch, wide)
        run(config_of("fcf"), DATA)
    assert "wrong shapes in the updates of 16 of 16 clients" in str(error.value)
    assert f"{TABLE} is (" in str(error.value) and "9) float32, expected (" in str(error.value)


ENDS = {np.nan: NonFiniteLossError, 1e30: AggregateOverflowError}


@pytest.mark.parametrize("parts", [None, TWO], ids=["one host", "two hosts"])
@pytest.mark.parametrize("value", ENDS, ids=str)
@pytest.mark.parametrize(("n", "most", "ends"), [(8, 0.5, False), (9, 0.5, True), (1, 0.0, True), (15, 1.0, False),
                                                 (16, 1.0, True)])  # fmt: skip
def test_too_many_end_the_run_with_the_error_it_always_had(n, most, ends, value, parts):
    config = config_of("fcf", max_rejected=most)
    with pytest.MonkeyPatch.context() as patch:
        poisoned(patch, everywhere(value), who=range(16 - n, 16), when=(1,))
        if not ends:
            assert [r.clients_rejected for r in run(config, DATA, parts)[1]] == [0, n, 0, 0]
            return
        with pytest.raises(ENDS[value]) as error:
            run(config, DATA, parts)
    named = list(range(16 - n, 16))[:NAMED]
    assert f"round 1: {'NaN' if value != 1e30 else 'numbers'}" in str(error.value)
    assert f"of {n} of 16 clients (clients {named}{' ...' if n > NAMED else ''})" in str(error.value)
    assert "Lower backbone.lr" in str(error.value)


def test_a_run_that_diverges_ends_as_it_did():
    with pytest.raises(NonFiniteLossError, match="clients"):
        run(tiny_config({"backbone": {"name": "fcf", "dim": 8, "lr": 1e30}}), DATA)


def test_clients_that_fit_alone_and_not_together_are_an_overflow_still():
    """Nobody is to blame more than another: 2^29 three times."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(AggregateOverflowError, match="a sum over clients"):
        poisoned(patch, far(2**29), who=(1, 2, 3), when=(1,))
        run(config_of("fcf"), DATA)


def test_refusals_of_two_hosts_are_those_of_one():
    a = {"norm": Refused(7, (1, 3, 5, 7, 9)), "shape": Refused(1, (30,), "b")}
    b = {"norm": Refused(2, (2, 4)), "shape": Refused(2, (20, 21), "a"), "rows": Refused(1, (6,))}
    expected = {"shape": Refused(3, (20, 21, 30), "a"), "rows": Refused(1, (6,)), "norm": Refused(9, (1, 2, 3, 4, 5))}
    assert both(a, b) == both(b, a) == expected
    assert list(both(a, b)) == [r for r in REASONS if r in expected]
    assert both({}, a).keys() == a.keys() and both({}, {}) == {}


def test_the_error_is_of_what_most_have():
    rejected = {"rows": Refused(1, (1,)), "norm": Refused(2, (2, 3))}
    require_enough(3, 3, rejected, 0.5)
    with pytest.raises(RejectedUpdatesError, match=r"round 3: a norm .* of 2 of 5 clients \(clients \[2, 3\]\)"):
        require_enough(3, 2, rejected, 0.5)


def test_a_repeated_report_is_counted_as_one_too_many():
    """Were a host's report summed twice, the round would have more clients than were asked."""
    config = config_of("fcf")
    where = executor(config, DATA)
    state, real = rounds.start(config, where._hosts[0].method), where.train

    def doubled_report(broadcast, limit, targets):
        report = real(broadcast, limit, targets)
        return replace(report, clients=2 * report.clients)

    where.train = doubled_report
    with pytest.raises(BadReportError, match="reports of 32 clients; expected at most 16"):
        rounds.step(state, where)
