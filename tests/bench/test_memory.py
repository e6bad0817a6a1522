"""The memory plan against what a run then takes, at the size of ML-100K."""

import pytest

from fedray.runtime.plan import Resources, make_plan
from tests.bench.measure import config_of, prepared
from tests.bench.memory import Look, Watched, numbered, peak_of, quiet, table

pytestmark = pytest.mark.bench


@pytest.mark.parametrize("name", ["fedrap", "gpfedrec"])
def test_the_plan_is_within_half_of_the_measured_peak(name):
    """Two rounds: from the second on, clients have targets and the best round's tables are another than this one's."""
    config = quiet(config_of(name, "ml-100k"), rounds=2)
    data, method = prepared(config)
    plan = make_plan(config, method, data, Resources(2.0, 0.0, 24e9))
    assert 1 / 1.5 < plan.total_bytes / peak_of(config) < 1.5


def test_what_grows_is_named_and_what_came_or_went_is_left_out():
    mib = 2**20
    calm = [(r, Look(50 * mib, 40 * mib, mib, 9)) for r in range(1, 101)]
    leaking = [(r, Look(50 * mib, (40 + r / 10) * mib, mib, 9)) for r in range(1, 101)]
    opening = [(r, Look(50 * mib, 40 * mib, mib, 9 + r // 50)) for r in range(1, 101)]
    names = numbered({7: "client actor", 8: "client actor", 9: "raylet", 10: "idle worker"})
    looks = dict(zip(names.values(), (calm, leaking, opening, calm[:30]), strict=True))
    found = table(Watched(looks, 100))
    assert [g.partition(" (")[0] for g in found.grown] == ["client actor 2", "raylet", "all"]
    assert "| client actor 1 | 50.0 | 50.0 | 40.0 | 40.0 | 1.0 | 1.0 | 9 | 9 |" in found.text
    assert "idle worker" not in found.text and "| all | 150.0 |" in found.text
