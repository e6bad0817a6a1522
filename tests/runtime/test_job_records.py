"""Runs, attempts and what a script is told: pure."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedray.errors import ClusterError, JobDoneError, JobError, JobRunningError, NoSuchJobError, NotShippableError
from fedray.runtime import job_records as records
from fedray.runtime.job_records import JobRecord
from fedray.runtime.jobs import RayJobs, cluster_address, literal

JOBS = [
    JobRecord("fcf-a1", "stopped"),
    JobRecord("fcf-a10", "resumable", 75),
    JobRecord("fcf-a2", "failed", 1),
    JobRecord("mlp-a1", "running"),
    JobRecord("done-a1", "succeeded", 0),
    JobRecord("raysubmit_x", "failed"),
    JobRecord("raysubmit_x-a0", "failed"),
]


@given(st.from_regex(records.RUN_ID, fullmatch=True), st.integers(1, 10**6))
def test_a_submission_id_is_split_into_what_it_was_made_of(run_id, attempt):
    assert records.split(f"{run_id}-a{attempt}") == (run_id, attempt)


def test_the_next_attempt_counts_from_the_highest():
    assert records.next_attempt("fcf", JOBS) == "fcf-a11"
    assert records.next_attempt("new", JOBS) == "new-a1"
    assert records.next_attempt("raysubmit_x", JOBS) == "raysubmit_x-a1"


def test_what_goes_on_or_is_done_is_not_submitted_again():
    with pytest.raises(JobRunningError, match="mlp-a1 is running.*fedray stop mlp"):
        records.next_attempt("mlp", JOBS)
    with pytest.raises(JobDoneError, match="done-a1 succeeded"):
        records.next_attempt("done", JOBS)


def test_a_name_is_a_run_or_one_of_its_attempts():
    assert records.find("fcf", JOBS, "here").submission_id == "fcf-a10"
    assert records.find("fcf-a2", JOBS, "here").attempt == 2
    assert records.find("raysubmit_x", JOBS, "here").attempt == 0
    with pytest.raises(NoSuchJobError, match="'fcg' here.*Did you mean 'fcf'"):
        records.find("fcg", JOBS, "here")
    with pytest.raises(NoSuchJobError, match="fedray list"):
        records.find("else", [], "here")


@pytest.mark.parametrize("run_id", ["", "-x", "a b", "a/b", "../a", "a\n", "é", "x" * 129, "fcf-a1", ".hidden"])
def test_run_ids_that_are_none(run_id):
    with pytest.raises(JobError, match="--run-id"):
        records.checked_run_id(run_id)


def test_a_new_run_id_may_be_one():
    made = records.new_run_id("fcf_ml100k")
    assert records.checked_run_id(made) == made and made != records.new_run_id("fcf_ml100k")


@pytest.mark.parametrize(
    ("state", "code", "status", "own"),
    [
        ("pending", None, 0, 0),
        ("running", None, 0, 0),
        ("succeeded", 0, 0, 0),
        ("failed", 1, 1, 1),
        ("failed", 2, 1, 2),
        ("failed", 3, 1, 3),
        ("failed", -9, 1, 137),
        ("failed", None, 1, 1),
        ("resumable", 75, 75, 75),
        ("resumable", None, 75, 75),
        ("stopped", None, 130, 130),
        ("stopped", -9, 130, 130),
    ],
)
def test_exit_codes(state, code, status, own):
    job = JobRecord("x-a1", state, code)
    assert (records.status_code(job), records.own_code(job)) == (status, own)


@pytest.mark.parametrize(
    ("code", "state"), [(0, "succeeded"), (75, "resumable"), (130, "stopped"), (1, "failed"), (-15, "failed")]
)
def test_how_a_process_ended_is_a_state(code, state):
    assert records.state_of(code) == state


@pytest.mark.parametrize(
    ("given_", "here", "found"),
    [
        ("http://h:8265/", {"RAY_ADDRESS": "http://other:1"}, "http://h:8265"),
        ("https://ray.example", {}, "https://ray.example"),
        ("", {"RAY_API_SERVER_ADDRESS": "http://a:1", "RAY_ADDRESS": "http://b:1"}, "http://a:1"),
        ("", {"RAY_API_SERVER_ADDRESS": "", "RAY_ADDRESS": "http://b:1"}, "http://b:1"),
    ],
)
def test_the_address_given_wins_over_the_environment(given_, here, found):
    assert cluster_address(given_, here) == found


@pytest.mark.parametrize(
    ("given_", "here", "says"),
    [
        ("", {}, "no cluster.*--local"),
        ("ray://head:10001", {}, "--address 'ray://head:10001'.*Try --address http://head:8265"),
        ("head:8265", {}, "Try --address http://head:8265"),
        ("", {"RAY_ADDRESS": "10.0.0.1:6379"}, "RAY_ADDRESS '10.0.0.1:6379'.*http://10.0.0.1:8265"),
        ("auto", {}, "http://HOST:8265"),
        ("http://", {}, "http://HOST:8265"),
        ("ray://u:hidden@head:1", {}, r"ray://\*\*\*@head"),
    ],
)
def test_another_kind_of_address_is_refused_and_the_right_one_named(given_, here, says):
    with pytest.raises(JobError, match=says):
        cluster_address(given_, here)


def test_no_variable_is_changed_on_its_way_through_ray():
    assert literal({"A": "1"}) == {"A": "1"}
    assert list(literal({"A": "x$HOME$"}).items()) == [
        ("FEDRAY_DOLLAR", "$"),
        ("A", "x${FEDRAY_DOLLAR}HOME${FEDRAY_DOLLAR}"),
    ]
    with pytest.raises(NotShippableError, match="^B with") as found:
        literal({"A": "1", "B": "secret${X}"})
    assert "secret" not in str(found.value)


class Breaking:
    """Ray's client over a connection that breaks after so many pieces of the log, each time it is followed."""

    LOG = ["a\n", "b\n", "c\n", "d\n"]

    def __init__(self, *pieces):
        self.pieces = list(pieces)

    def get_job_info(self, submission_id):
        status = "RUNNING" if self.pieces else "SUCCEEDED"
        return SimpleNamespace(submission_id=submission_id, status=status, driver_exit_code=None, error_type=None,
                               message="", start_time=1, end_time=None)  # fmt: skip

    async def tail_job_logs(self, submission_id):
        for piece in self.LOG[: self.pieces.pop(0)]:
            yield piece
        raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")

    def get_job_logs(self, submission_id):
        return "".join(self.LOG)


def followed(client, monkeypatch):
    monkeypatch.setattr("fedray.runtime.jobs.POLL_S", 0.0)
    there, found = RayJobs.__new__(RayJobs), []
    there.address, there._client = "http://h:1", client
    there.follow("x-a1", found.append)
    return "".join(found)


def test_a_log_is_followed_over_breaks_without_gaps_or_repeats(monkeypatch):
    assert followed(Breaking(1, 0, 3, 2, 3), monkeypatch) == "a\nb\nc\nd\n"


def test_a_connection_that_only_breaks_is_given_up(monkeypatch):
    with pytest.raises(ClusterError, match="closed unexpectedly"):
        followed(Breaking(2, 2, 2, 2, 2, 2, 2, 2), monkeypatch)
