"""Trials on disk: whole or as before, and a sweep goes on only with itself."""

import json

import pytest

from fedray.errors import CheckpointError, ResumeError
from fedray.search.records import Records, TrialRecord, best_of
from fedray.storage import Storage

ONE = TrialRecord(3, {"backbone.lr": 0.1, "plugins": {"dualper": {}}}, "pruned", 0.25, 4, ((2, 0.2), (4, 0.25)), 5, 1.5)


def records(tmp_path, fingerprint="abc"):
    return Records(Storage.at(str(tmp_path)), "night", fingerprint, "name: x\n")


def test_what_is_put_comes_back(tmp_path):
    there = records(tmp_path)
    assert there.open(resume=False) == []
    there.put(TrialRecord(0, {"backbone.lr": 1}))
    there.put(ONE)
    assert records(tmp_path).open(resume=True) == [TrialRecord(0, {"backbone.lr": 1}), ONE]


def test_a_trial_is_replaced(tmp_path):
    there = records(tmp_path)
    there.open(resume=False)
    there.put(TrialRecord(3, ONE.settings))
    there.put(ONE)
    assert records(tmp_path).open(resume=True) == [ONE]


def test_a_death_while_writing_leaves_what_was(tmp_path):
    there = records(tmp_path)
    there.open(resume=False)
    there.put(ONE)
    (tmp_path / "night" / "trials" / ".00003.part").mkdir()
    (tmp_path / "night" / "trials" / ".00003.part" / "trial.json").write_text("{")
    assert records(tmp_path).open(resume=True) == [ONE]


def test_without_resume_it_is_refused(tmp_path):
    records(tmp_path).open(resume=False)
    with pytest.raises(ResumeError, match="night is there already"):
        records(tmp_path).open(resume=False)


def test_another_sweep_is_refused(tmp_path):
    records(tmp_path).open(resume=False)
    with pytest.raises(ResumeError, match="another job, space, search or scheduler"):
        records(tmp_path, "xyz").open(resume=True)


def test_a_file_that_was_changed_is_named(tmp_path):
    there = records(tmp_path)
    there.open(resume=False)
    there.put(ONE)
    file = tmp_path / "night" / "trials" / "00003" / "trial.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "more": 1}))
    with pytest.raises(CheckpointError, match="00003 cannot be read"):
        records(tmp_path).open(resume=True)


def test_the_best_is_the_highest_and_of_equals_the_first():
    def trial(number, value, state="finished"):
        return TrialRecord(number, {}, state, value)

    assert best_of([trial(0, 0.1), trial(1, 0.3, "failed"), trial(2, 0.2), trial(3, 0.2)]).number == 2
    assert best_of([trial(0, None), TrialRecord(1, {})]) is None
