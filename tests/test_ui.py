"""`fedray ui`: MLflow's server on the store there is, on a port that is free, and gone afterwards."""

import io
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from rich.console import Console

from fedray import ui
from fedray.errors import ConfigError, TrackingError
from fedray.tracking import store


def test_the_store_is_not_on_the_command_line(tmp_path):
    uri = "postgresql://me:secret@db/mlflow"
    assert "secret" not in " ".join(ui.command(uri, "127.0.0.1", 5000))
    assert ui.environment(uri)["MLFLOW_BACKEND_STORE_URI"] == uri


def test_artifacts_of_a_file_lie_beside_it(tmp_path):
    argv = ui.command(f"sqlite:///{tmp_path}/mlflow.db", "127.0.0.1", 5001)
    assert argv[argv.index("--artifacts-destination") + 1] == str(tmp_path / "mlartifacts")
    assert argv[argv.index("--port") + 1] == "5001"


def test_the_next_free_port_is_taken(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(ui, "FIRST_PORT", port)
        assert port < ui.pick_port("127.0.0.1", 0) < port + ui.PORTS_TRIED
        with pytest.raises(ConfigError, match=f"port {port} of 127.0.0.1: in use"):
            ui.pick_port("127.0.0.1", port)
        monkeypatch.setattr(ui, "PORTS_TRIED", 1)
        with pytest.raises(ConfigError, match="Name another with --port"):
            ui.pick_port("127.0.0.1", 0)


def test_a_store_that_is_not_there_is_not_made(tmp_path):
    with pytest.raises(TrackingError, match="there is no such store"):
        ui.ui(f"sqlite:///{tmp_path}/mlflow.db", "127.0.0.1", 0, Console(file=io.StringIO()))
    assert not list(tmp_path.iterdir())


def test_of_a_server_it_says_where_it_is():
    said = io.StringIO()
    ui.ui("http://user:secret@mlflow:5000", "127.0.0.1", 0, Console(file=said, width=200))
    assert "mlflow:5000" in said.getvalue() and "secret" not in said.getvalue()


@pytest.mark.parametrize(
    ("host", "url"), [("127.0.0.1", "http://127.0.0.1:7"), ("0.0.0.0", "http://127.0.0.1:7"), ("::", "http://[::1]:7")]
)
def test_where_a_browser_finds_it(host, url):
    assert ui.url(host, 7) == url


def test_it_serves_until_a_signal(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = store.connect(uri)
    client.create_experiment("fedray/toy/clean")
    log = tmp_path / "log"
    with log.open("w") as out:
        command = [sys.executable, "-m", "fedray.cli", "ui", "--uri", uri, "--port", str(free())]
        process = subprocess.Popen(command, stdout=out, stderr=out, cwd=tmp_path)
    try:
        until = time.monotonic() + 120
        while "MLflow: http" not in log.read_text():
            assert process.poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(0.2)
        address = log.read_text().split("MLflow: ")[1].split()[0]
        with urllib.request.urlopen(address, timeout=20) as page:
            assert b"<title>MLflow</title>" in page.read()
    finally:
        process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    assert "stopped" in log.read_text()
    with pytest.raises(OSError):
        urllib.request.urlopen(address, timeout=5)
    assert os.environ.get("MLFLOW_BACKEND_STORE_URI") is None


def free():
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return trial.getsockname()[1]
