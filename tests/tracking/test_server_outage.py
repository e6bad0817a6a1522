"""A tracking server that dies in mid-run: training goes on, and every point is there after it comes back."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from mlflow import MlflowClient

from fedray.config import make_config
from fedray.tracking.mlflow import MlflowTracker
from fedray.tracking.replay import replay
from fedray.tracking.tracker import RunEnd, RunStart
from fedray.types import RoundReport

START = RunStart(make_config({"name": "outage"}), "fcf", {"name": "synthetic", "fingerprint": "abc"})


class Server:
    """An MLflow server on a database of its own, that can be killed and started again on the same port."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder, self.uri = folder, f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        bin_ = Path(sys.executable).parent
        env = {**os.environ, "PATH": f"{bin_}:{os.environ['PATH']}", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        command = [str(bin_ / "mlflow"), "server", "--backend-store-uri", f"sqlite:///{self.folder}/m.db"]
        command += ["--artifacts-destination", str(self.folder / "art"), "--workers", "1", "--port", str(self.port)]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, env=env, cwd=self.folder, start_new_session=True, **quiet)
        end = time.monotonic() + 90
        while not self.answers():
            assert time.monotonic() < end and self.process.poll() is None, "the server does not come up"
            time.sleep(0.3)

    def answers(self) -> bool:
        try:
            return urllib.request.urlopen(f"{self.uri}/health", timeout=2).status == 200
        except (urllib.error.URLError, OSError):
            return False

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture
def server(tmp_path):
    made = Server(tmp_path)
    made.start()
    yield made
    made.kill()


def log(tracker, rounds) -> float:
    """Log these rounds; the longest call in seconds."""
    longest = 0.0
    for r in rounds:
        begun = time.perf_counter()
        tracker.log_round(RoundReport(r, {"train/loss": 1 / r, "val/ndcg_at_10": r / 100}, {"round": 0.1}, 1, 2, 3))
        longest = max(longest, time.perf_counter() - begun)
    return longest


def points(client, run_id, name):
    return [(m.step, m.value) for m in client.get_metric_history(run_id, name)]


def test_killed_in_mid_run_then_back_and_later_dead_at_the_end(server, tmp_path):
    tracker = MlflowTracker(server.uri, tmp_path / "spool")
    run_id = tracker.start(START)
    log(tracker, range(1, 11))
    server.kill()
    with pytest.warns(UserWarning, match="no answer"):
        longest = log(tracker, range(11, 31))
        time.sleep(3)
        longest = max(longest, log(tracker, range(31, 41)))
    assert longest < 0.05
    server.start()
    with pytest.warns(UserWarning, match="back"):
        tracker.finish(RunEnd("FINISHED", {"test/ndcg_at_10": 0.4}, texts={"table.md": "| a |"}))
    client = MlflowClient(server.uri)
    for name, value in (("train/loss", lambda r: 1 / r), ("val/ndcg_at_10", lambda r: r / 100)):
        assert points(client, run_id, name) == [(r, value(r)) for r in range(1, 41)]
    assert client.get_run(run_id).info.status == "FINISHED" and not list((tmp_path / "spool").glob("*.jsonl"))

    # the second run's server is gone for good before its end: its points wait, and `replay` brings them home
    later = MlflowTracker(server.uri, tmp_path / "spool", patience_s=2.0)
    second = later.start(START)
    log(later, range(1, 6))
    server.kill()
    with pytest.warns(UserWarning):
        log(later, range(6, 11))
        later.finish(RunEnd("FINISHED", {"test/ndcg_at_10": 0.4}))
    assert "fedray sync" in later.where() and list((tmp_path / "spool").glob("*.jsonl"))
    server.start()
    assert replay(tmp_path / "spool", server.uri) > 0
    assert [s for s, _ in points(client, second, "val/ndcg_at_10")] == list(range(1, 11))
    assert client.get_run(second).info.status == "FINISHED" and not list((tmp_path / "spool").glob("*.jsonl"))
