"""A checkpoint is whole or not there; of another run it is refused; and no failure to write one costs a run."""

import errno
import json
import os

import numpy as np
import pytest

from fedray.errors import CheckpointError, ConfigError, FedrayWarning, ResumeError
from fedray.federated import rounds
from fedray.methods import build
from fedray.runtime import coordinator
from fedray.runtime.checkpoint import NEW, Go, opened
from fedray.runtime.coordinator import Coordinator
from fedray.storage import Storage
from tests import helpers
from tests.helpers import PFEDREC, tiny_config, tiny_data

DATA = tiny_data()


def config_of(tmp_path, method=PFEDREC, train=None, **checkpoint):
    body = {"every": 2, "path": str(tmp_path / "all"), **checkpoint}
    return tiny_config(method, {"rounds": 7, **(train or {})}, runtime={"checkpoint": body})


R = Go("r")


def coordinator_of(config, go=R, data="data"):
    where = helpers.executor(config, DATA, [np.arange(0, 20, 2), np.arange(1, 20, 2)])
    return Coordinator(config, build(config, DATA.n_items), where, opened(config, data, "cpu", go))


def steps(run, n):
    return [run.step()[0] for _ in range(n)]


def numbers(reports):
    return [(r.round, r.metrics, r.bytes_up) for r in reports]


def folders(tmp_path, run="r"):
    return sorted(p.name for p in (tmp_path / "all" / run).glob("*round-*"))


def expected(config):
    _, reports, outcome, _ = helpers.run(config, DATA)
    return numbers(reports), outcome


def goes_on(config):
    """(numbers of all rounds, outcome) of a run that resumes."""
    run = coordinator_of(config, Go("r", True))
    past, last = run.resume()
    found = list(past)
    while not last:
        report, last = run.step()
        found.append(report)
    return numbers(found), run.finish()


def test_the_newest_of_the_kept_ones_is_where_a_run_goes_on(tmp_path):
    config = config_of(tmp_path)
    steps(coordinator_of(config), 5)
    assert folders(tmp_path) == ["round-000002", "round-000004"]
    assert goes_on(config) == expected(config)
    assert folders(tmp_path) == ["round-000006", "round-000007"]


@pytest.mark.parametrize("name", ["manifest.json", "server.safetensors", "run.json", "clients-00001.safetensors"])
@pytest.mark.parametrize("fault", ["cut", "changed", "gone"])
def test_what_is_torn_is_said_and_skipped_for_the_one_before(tmp_path, name, fault):
    config = config_of(tmp_path)
    steps(coordinator_of(config), 5)
    file = tmp_path / "all" / "r" / "round-000004" / name
    content = file.read_bytes()
    if fault == "gone":
        file.unlink()
    else:
        file.write_bytes(content[:-9] if fault == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.warns(FedrayWarning, match="round-000004 is skipped"):
        assert goes_on(config) == expected(config)


def test_one_that_was_being_written_does_not_count(tmp_path):
    config = config_of(tmp_path)
    run = coordinator_of(config)
    steps(run, 5)
    aside = tmp_path / "all" / "r" / ".round-000006.part"
    aside.mkdir()
    (aside / "server.safetensors").write_bytes(b"half")
    assert goes_on(config) == expected(config)
    assert not aside.exists()


def test_with_none_left_a_run_starts_again(tmp_path):
    config = config_of(tmp_path)
    steps(coordinator_of(config), 5)
    for folder in (tmp_path / "all" / "r").glob("round-*"):
        (folder / "manifest.json").write_text("{")
    with pytest.warns(FedrayWarning, match="is skipped"):
        assert goes_on(config) == expected(config)


WRITES = ("clients-00000", "clients-00001", "000003-000004.json", "server", "run.json", "manifest", "old ones go")
"""What the checkpoint of round 4 does, in this order."""


def failing(monkeypatch, at, error):
    """From the call on that names it, `at` fails half done; what is returned ends that."""
    write, remove, on = Storage.write, Storage.remove, [at]

    def sometimes(self, name, content):
        if on and at in name:
            write(self, name, content[: len(content) // 2])
            raise error
        return write(self, name, content)

    def kept(self, name):
        if on and at == "old ones go" and name == "round-000000":
            raise error
        remove(self, name)

    monkeypatch.setattr(Storage, "write", sometimes)
    monkeypatch.setattr(Storage, "remove", kept)
    return on


@pytest.mark.parametrize("at", WRITES)
def test_a_full_disk_is_said_and_costs_nothing(tmp_path, monkeypatch, at):
    config, full = config_of(tmp_path), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    run = coordinator_of(config)
    found = steps(run, 3)
    (tmp_path / "all" / "r" / "round-000000").mkdir()  # an old one
    on = failing(monkeypatch, at, full)
    says = "old checkpoints in .* stay" if at == "old ones go" else "no checkpoint of round 4: No space left on device"
    with pytest.warns(FedrayWarning, match=says):
        found += steps(run, 2)
    assert ".round-000004.part" not in folders(tmp_path)
    on.clear()
    found += steps(run, 2)
    assert (numbers(found), run.finish()) == expected(config)
    assert folders(tmp_path) == ["round-000006", "round-000007"]
    assert goes_on(config) == expected(config)  # each round's report once, those of the failed checkpoint included


@pytest.mark.parametrize("at", ["clients-00001", "json", "server", "manifest"])
@pytest.mark.parametrize("rounds_before", [0, 2])
def test_killed_in_a_checkpoint_a_run_has_each_round_once_and_leaves_nothing_beside(
    tmp_path, monkeypatch, at, rounds_before
):
    config = config_of(tmp_path)
    run = coordinator_of(config)
    steps(run, rounds_before)
    on = failing(monkeypatch, at, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        steps(run, 2)
    on.clear()
    every_3 = config_of(tmp_path, every=3)  # as `auto` may have it: not the same rounds again
    assert goes_on(every_3) == expected(config)
    assert not [n for n in folders(tmp_path) if n.startswith(".")]


def test_restarts_before_a_run_went_on_are_counted(tmp_path):
    config = config_of(tmp_path)
    run = coordinator_of(config)
    run.resume(restarts=3)
    steps(run, 4)
    for told, restarts in ((0, 3), (5, 5)):
        again = coordinator_of(config, Go("r", True))
        past, _ = again.resume(told)
        assert [r.restarts for r in past] == [3] * 4
        assert again.step()[0].restarts == restarts


def test_a_run_of_that_name_is_not_overwritten(tmp_path):
    config = config_of(tmp_path)
    steps(coordinator_of(config), 3)
    with pytest.raises(ResumeError, match=r"run r is there already, up to round 2.*--resume-or-start"):
        coordinator_of(config)
    assert coordinator_of(config, NEW) is not None  # a run of its own, beside


@pytest.mark.parametrize(
    ("go", "expected"),
    [
        (Go("r"), "--run-id r --resume-or-start"),
        (Go(), "--run-id own --resume-or-start"),
        (Go("r").of_seed(3), "--run-id r --resume-or-start"),  # the family's: `r-s3` would be a family of its own
        (Go().of_seed(3), "a --run-id from the start (without one, seeds begin anew)"),
    ],
)
def test_how_to_go_on_is_what_the_command_understands(go, expected):
    assert go.how(go.run_id if go.family is None and go.run_id else "own") == expected


def test_other_settings_are_refused_by_name(tmp_path):
    steps(coordinator_of(config_of(tmp_path)), 3)
    other = config_of(tmp_path, train={"negatives": 5})
    with pytest.raises(ResumeError, match=r"other settings: train.negatives 4 there, 5 here"):
        goes_on(other)


def test_settings_that_change_no_number_are_not(tmp_path):
    steps(coordinator_of(config_of(tmp_path)), 3)
    other = config_of(tmp_path, every=3, keep=1)
    assert goes_on(other) == expected(other)
    assert folders(tmp_path) == ["round-000007"]


def test_other_data_are_refused(tmp_path):
    config = config_of(tmp_path)
    steps(coordinator_of(config), 3)
    with pytest.raises(ResumeError, match="run r was made with other data"):
        coordinator_of(config, Go("r", True), "others").resume()


def test_another_machine_is_a_warning(tmp_path):
    config = config_of(tmp_path)
    steps(coordinator_of(config), 3)
    file = tmp_path / "all" / "r" / "round-000002" / "manifest.json"
    body = json.loads(file.read_text())
    body["environment"]["cpu"] = "AVX1024"
    file.write_text(json.dumps(body))
    with pytest.warns(FedrayWarning, match="AVX1024 -> "):
        assert goes_on(config) == expected(config)


def test_resuming_without_checkpoints_is_refused(tmp_path):
    with pytest.raises(ResumeError, match=r"checkpoint.every is 0"):
        coordinator_of(config_of(tmp_path, every=0), Go("r", True))


def test_a_client_file_that_is_not_there_is_no_checkpoint(tmp_path):
    config = config_of(tmp_path)
    found, run = opened(config, "data", "cpu", Go("r")), rounds.start(config, build(config, DATA.n_items))
    from fedray.federated.run_snapshots import of_run
    from fedray.storage import Written

    found.aside(1)
    with pytest.raises(CheckpointError, match="clients-00003.safetensors is not there: an actor on another node"):
        found.commit(1, of_run(run), [Written("clients-00003.safetensors", "", 0)], [])


def test_auto_is_by_what_it_costs(tmp_path, monkeypatch):
    """Not before it is worth it; from then on by the cost of the last one; always at the end of a run with a name."""
    config = config_of(tmp_path, every="auto", train={"rounds": 40})
    run = coordinator_of(config)
    steps(run, 15)
    assert folders(tmp_path) == []
    monkeypatch.setattr(coordinator, "SHARE", 1e9)  # any cost is worth it: only the rounds between two count
    steps(run, 24)
    assert folders(tmp_path) == ["round-000026", "round-000036"]
    steps(run, 1)
    assert folders(tmp_path) == ["round-000036", "round-000040"]


def test_any_fsspec_uri_will_do(tmp_path):
    config = config_of(tmp_path, path="memory://fedray-test")
    steps(coordinator_of(config), 5)
    assert goes_on(config) == expected(config)
    opened(config, "data", "cpu", Go("r", True)).clear()
    assert Storage("memory://fedray-test/r").names() == []


def test_a_uri_that_nothing_reads_is_named():
    with pytest.raises(ConfigError, match="nowhere://x"):
        Storage.at("nowhere://x").names()


def test_what_is_written_is_read_and_checked(tmp_path):
    there = Storage.at(str(tmp_path / "a"))
    file = there.write("b/c.bin", b"abc")
    assert there.read("b/c.bin", file.sha256) == b"abc" and file.size == 3
    (tmp_path / "a" / "b" / "c.bin").write_bytes(b"abd")
    with pytest.raises(CheckpointError, match="torn or was changed"):
        there.read("b/c.bin", file.sha256)
    with pytest.raises(CheckpointError, match="d.bin: No such file"):
        there.read("d.bin")
