"""Which kept results the published matrix runs again."""

import pytest

from fedray.config import make_config
from fedray.tracking.records import params
from tests.bench.quality import differs

JOB = {"backbone": {"name": "fcf", "lr": 0.3}, "train": {"private_weight_decay": 0.01}}


def kept(config, **missing):
    about = {"params": {k: v for k, v in params(config, config.method_name()).items() if k not in missing}}
    return {"runs": [{"about": about}]}


def test_a_result_of_the_same_settings_is_kept_wherever_it_ran():
    now = make_config({**JOB, "runtime": {"executor": "serial"}, "name": "other"})
    assert not differs(kept(make_config(JOB)), now)
    assert not differs({"refused": "", **kept(make_config(JOB))["runs"][0]}, now)


@pytest.mark.parametrize(
    "changed",
    [
        {"backbone": {"name": "fcf", "lr": 0.1}},
        {"backbone": {"name": "fcf", "lr": 0.3, "item_lr_scale": 2.0}},
        {"train": {}},
        {"plugins": {"dualper": {}}},
        {"evaluation": {"protocol": "paper/pfedrec"}},
    ],
)
def test_a_result_of_other_settings_or_of_none_said_is_run_again(changed):
    now = make_config({**JOB, **changed})
    assert differs(kept(make_config(JOB)), now)
    assert differs(kept(now), make_config(JOB))
    assert differs({"runs": [{}]}, now)
    assert differs({"refused": ""}, now)


def test_a_setting_that_came_later_counts_only_where_the_job_gives_it():
    old = kept(make_config(JOB), **{"backbone.item_lr_scale": 1})
    assert not differs(old, make_config(JOB))
    assert differs(old, make_config({**JOB, "backbone": {**JOB["backbone"], "item_lr_scale": 2.0}}))
