"""`fedray submit`, `status`, `logs`, `stop` and `list` do the same on a cluster behind a token and on this machine."""

import contextlib
import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest

from fedray.errors import ClusterAuthError, ClusterError
from fedray.runtime import jobs
from fedray.runtime.job_records import Request
from fedray.runtime.local_jobs import LocalJobs, identity, is_alive, write_json

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
JOB = str(ROOT / "jobs" / "quickstart.yaml")
ODD = "a b'c$HOME\ne"
TOKEN = "5ecre7" * 8
BASE = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {
    "PYTHONPATH": str(ROOT),
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "MLFLOW_TRACKING_TOKEN": "also-5ecre7",
}
IN = BASE | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}


def free_ports(n):
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.socket()) for _ in range(n)]
        for s in taken:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in taken]


@pytest.fixture(scope="module")
def cluster():
    """The address of a one-node cluster behind `TOKEN`; its processes, and nobody else's, end with it."""
    folder = tempfile.mkdtemp(prefix="fr")  # short: Ray keeps sockets in there
    gcs, dashboard, agent, client = free_ports(4)
    command = [
        str(Path(sys.executable).parent / "ray"),
        "start",
        "--head",
        "--block",
        "--num-cpus=2",
        "--disable-usage-stats",
    ]
    command += [
        "--node-ip-address=127.0.0.1",
        f"--port={gcs}",
        f"--temp-dir={folder}",
        f"--ray-client-server-port={client}",
    ]
    command += [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}", "--include-dashboard=true"]
    with (Path(folder) / "start.log").open("wb") as log:
        head = subprocess.Popen(command, env=IN, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_until(lambda: listens(dashboard) and listens(agent), 90)
        yield f"http://127.0.0.1:{dashboard}"
    finally:
        mine = [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]
        head.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            head.wait(3)
        for process in mine:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


def listens(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def wait_until(fact, seconds=30):
    end = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < end, "still not so after the wait"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the command line is used, with a stand-in for the training beside it."""
    found = tmp_path_factory.mktemp("jobs")
    (found / "own" / "jobs").mkdir(parents=True)
    shutil.copy(HERE / "stand_in.py", found / "own" / "jobs" / "train.py")
    return found


@pytest.fixture(scope="module")
def fedray(folder):
    """`fedray(*args)` is `(exit code, stdout, stderr)` of that command line."""
    loop = subprocess.Popen([sys.executable, str(HERE / "command_loop.py")], cwd=folder, env=IN, text=True,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip

    def call(*args):
        loop.stdin.write(json.dumps(args) + "\n")
        loop.stdin.flush()
        code, out, err = json.loads(loop.stdout.readline())
        assert TOKEN not in out + err and "also-5ecre7" not in out + err and "Traceback" not in err
        return code, out, err

    yield call
    loop.stdin.close()
    loop.wait(20)
    for file in folder.glob(".fedray/jobs/*/process.json"):  # of tests that failed
        for process in filter(is_alive, json.loads(file.read_text()).values()):
            os.kill(process["pid"], signal.SIGKILL)


@pytest.fixture(params=["local", pytest.param("cluster", marks=pytest.mark.ray)])
def place(request):
    return ["--local"] if request.param == "local" else ["--address", request.getfixturevalue("cluster")]


def follow(folder, name, place):
    command = [sys.executable, "-m", "fedray.cli", "logs", name, "--follow", *place]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=folder, env=IN, text=True, preexec_fn=hears_ctrl_c, **pipes)


def hears_ctrl_c():
    """Also where the tests themselves were started in the background, and ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_run_is_submitted_followed_stopped_and_resumed_alike(fedray, folder, place, tmp_path):
    name = f"r{place[0].strip('-')}"
    rest = [*place, "--run-id", name, "--working-dir", "own", "--env", f"KEPT={tmp_path}", "--env", f"ODD={ODD}"]
    code, out, err = fedray("submit", JOB, *rest)
    assert code == 0 and out == f"{name}\n" and f"{name}-a1 submitted" in err
    assert ("which Ray removes" in err) == (place != ["--local"])
    assert "KEPT" in err and str(tmp_path) not in err and f"--follow {place[0]}" in err
    follower, bored = (follow(folder, name, place) for _ in range(2))
    bored.stdout.readline()
    bored.send_signal(signal.SIGINT)
    _, err = bored.communicate(timeout=30)
    assert bored.returncode == 130 and f"{name}-a1 goes on" in err and "Traceback" not in err
    wait_until(lambda: "round 3/" in fedray("logs", name, *place)[1])
    code, out, _ = fedray("status", name, *place)
    said = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert code == 0 and said["run"] == name and said["state"].startswith("running for 0:00:")
    assert "/1000  0.10 s a round  0:01:" in said["round"] and said["ndcg_at_10"] == "0.0800 (best 0.0900)"
    assert said["clients"] == "943 ok, 12 dropped, 0 rejected" and said["restarts"] == "1"
    code, _, err = fedray("submit", JOB, *rest)
    assert code == 2 and f"JobRunningError: {name}-a1 is running" in err and "fedray stop" in err

    begun = time.monotonic()
    code, _, err = fedray("stop", name, *place, "--wait")
    assert code == 0 and f"{name}-a1 stopped" in err and 4 < time.monotonic() - begun < 30
    out, _ = follower.communicate(timeout=30)
    committed = int((tmp_path / "committed").read_text())
    assert follower.returncode == 130 and f"committed round {committed}" in out and f"round {committed}/1000" in out
    assert out.count("round 2/1000") == 1
    code, out, _ = fedray("status", name, *place)
    assert code == 130 and "stopped" in out and f"fedray submit JOB --run-id {name}" in out
    code, out, err = fedray("stop", name, *place)
    assert (code, out) == (0, "") and err.startswith(f"{name}-a1 stopped")

    code, out, _ = fedray("submit", JOB, *rest, "--wait")
    assert code == 75 and f"from round {committed}, name: quickstart, {ODD!r}" in out
    assert f"'--run-id', '{name}', '--resume-or-start']" in out
    code, out, _ = fedray("status", f"{name}-a2", *place, "--json")
    found = json.loads(out)
    assert code == 75 and (found["state"], found["exit_code"], found["attempt"]) == ("resumable", 75, 2)
    assert found["progress"]["round"] == committed + 3 and found["ended"] > found["submitted"]
    code, out, err = fedray("submit", JOB, *rest, "--wait", "--ship")
    assert ("py_modules_files/_ray_pkg_" in out) == (place != ["--local"])
    assert code == 0 and f"from round {committed + 3}" in out and f"{name}-a3 succeeded" in err
    code, _, err = fedray("submit", JOB, *rest)
    assert code == 2 and f"JobDoneError: {name}-a3 succeeded" in err
    assert fedray("status", name, *place)[0] == 0 and fedray("status", f"{name}-a1", *place)[0] == 130

    code, out, _ = fedray("list", *place, "--json")
    listed = {j["submission_id"]: j["state"] for j in json.loads(out) if j["run_id"] == name}
    assert code == 0 and listed == {f"{name}-a3": "succeeded", f"{name}-a2": "resumable", f"{name}-a1": "stopped"}
    assert fedray("list", *place)[1].count(name) == 3
    code, _, err = fedray("logs", name[:-1] + "x", *place)
    assert code == 2 and err.startswith("NoSuchJobError") and f"Did you mean {name!r}?" in err


def test_a_job_that_does_not_end_is_killed_after_its_grace(fedray, place, tmp_path):
    name = f"deaf-{place[0].strip('-')}"
    env = ["--env", f"KEPT={tmp_path}", "--env", "DEAF=1", "--env", "RAY_JOB_STOP_WAIT_TIME_S=2"]
    assert fedray("submit", JOB, *place, "--run-id", name, "--working-dir", "own", *env)[0] == 0
    wait_until(lambda: "round 2/" in fedray("logs", name, *place)[1])
    begun = time.monotonic()
    code, _, err = fedray("stop", name, *place, "--wait")
    assert code == 0 and f"{name}-a1 stopped" in err and 1.5 < time.monotonic() - begun < 20


@pytest.mark.ray
@pytest.mark.parametrize(
    ("auth", "says"),
    [
        ({"RAY_AUTH_MODE": "disabled"}, "RAY_AUTH_TOKEN_PATH"),
        ({"RAY_AUTH_TOKEN": "wrong7oken" * 4}, "does not let you in"),
    ],
    ids=["none", "wrong"],
)
def test_without_the_clusters_token_nothing_is_told(cluster, tmp_path, auth, says):
    command = [sys.executable, "-m", "fedray.cli", "list", "--address", cluster]
    done = subprocess.run(command, cwd=tmp_path, env=IN | auth, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3 and done.stderr.startswith("ClusterAuthError") and says in done.stderr
    assert TOKEN not in done.stderr and "wrong7oken" not in done.stderr and "Traceback" not in done.stderr


def test_a_supervisor_that_is_killed_leaves_a_resumable_run(fedray, folder, tmp_path):
    rest = ["--run-id", "orphan", "--working-dir", "own", "--env", f"KEPT={tmp_path}"]
    assert fedray("submit", JOB, "--local", *rest)[0] == 0
    wait_until(lambda: "round 2/" in fedray("logs", "orphan", "--local")[1])
    processes = json.loads((folder / ".fedray/jobs/orphan-a1/process.json").read_text())
    os.kill(processes["supervisor"]["pid"], signal.SIGKILL)
    assert fedray("status", "orphan", "--local")[0] == 0  # the job itself still runs
    assert fedray("stop", "orphan", "--local", "--wait")[0] == 0
    code, out, _ = fedray("status", "orphan", "--local")
    assert code == 75 and "gone without an exit code" in out and (tmp_path / "committed").exists()


@pytest.mark.parametrize("jump", [86400.0, -86400.0])
def test_a_clock_that_is_set_ends_no_local_job(tmp_path, monkeypatch, jump):
    """psutil adds the time of day at boot to a process's age: all processes are of another time then."""
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: None)
    here, boot, now = LocalJobs(tmp_path), psutil.boot_time(), time.time
    here.submit(Request("r-a1", ["train.py", "job.yaml"], Path(HERE)))
    me = identity(os.getpid())
    monkeypatch.setattr(psutil._psplatform, "boot_time", lambda: boot + jump)
    monkeypatch.setattr(time, "time", lambda: now() + jump)
    assert here.job("r-a1").state == "pending" and is_alive(me)
    write_json(tmp_path / "r-a1" / "process.json", {"supervisor": me, "job": {"pid": me["pid"], "created": 1.0}})
    assert here.job("r-a1").state == "running" and not is_alive({"pid": me["pid"], "created": 1.0})


@contextlib.contextmanager
def server(status, body):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as found:
        thread = threading.Thread(target=found.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "body", "error", "says"),
    [
        (401, b"who?", ClusterAuthError, "RAY_AUTH_MODE=token"),
        (403, b"no", ClusterAuthError, "does not let you in"),
        (404, b"", ClusterError, "404"),
        (500, b"", ClusterError, "HTTPError"),
        (200, b"<html>", ClusterError, "refuses"),
        (200, b"{}", ClusterError, "KeyError"),
        (200, b'{"ray_version": "1.0"}', ClusterError, "Ray 1.9 or higher"),
    ],
)
def test_what_is_no_dashboard_is_a_named_error(status, body, error, says):
    with server(status, body) as address, pytest.raises(error, match=says) as found:
        jobs.RayJobs(address)
    assert found.value.exit_code == 3 and address in str(found.value)


def test_nobody_there_is_said_within_seconds(monkeypatch):
    monkeypatch.setattr(jobs._Client, "limit_s", 0.5)
    begun = time.monotonic()
    with pytest.raises(ClusterError, match="nobody answers"):
        jobs.RayJobs(f"http://127.0.0.1:{free_ports(1)[0]}")
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(ClusterError, match="Timeout"):
        jobs.RayJobs(f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert time.monotonic() - begun < 8


def test_the_address_that_is_given_wins_over_rays_own_variables(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    with server(403, b"") as address, pytest.raises(ClusterAuthError, match=address):
        jobs.RayJobs(address)
    assert "RAY_API_SERVER_ADDRESS" not in os.environ
