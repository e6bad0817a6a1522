"""The memory plan against what a run then takes, at the size of ML-100K."""

import pytest

from fedray.runtime.plan import Resources, make_plan
from tests.bench.measure import config_of, prepared
from tests.bench.memory import peak_of, quiet

pytestmark = pytest.mark.bench


@pytest.mark.parametrize("name", ["fedrap", "gpfedrec"])
def test_the_plan_is_within_half_of_the_measured_peak(name):
    """Two rounds: from the second on, clients have targets and the best round's tables are another than this one's."""
    config = quiet(config_of(name, "ml-100k"), rounds=2)
    data, method = prepared(config)
    plan = make_plan(config, method, data, Resources(2.0, 0.0, 24e9))
    assert 1 / 1.5 < plan.total_bytes / peak_of(config) < 1.5
