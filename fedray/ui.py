"""`fedray ui`: MLflow's own pages, served over the store that runs are recorded in."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from fedray.errors import ConfigError, Terminated, TrackingError
from fedray.progress import say, signals_raise
from fedray.tracking import store
from fedray.tracking.redact import redact

FIRST_PORT, PORTS_TRIED = 5000, 20
START_S, STOP_S = 120.0, 10.0
LOOPBACK = ("127.0.0.1", "localhost", "::1")
ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}
EXPOSED = "Whoever reaches this port can read, change and delete all runs: MLflow asks for no password here."


def ui(uri: str, host: str, port: int, console: Console) -> None:
    """Serve the store until a signal ends it; of a server, say where it is. port: 0 for the first that is free."""
    if uri.startswith(("http://", "https://")):
        return say(console, f"MLflow: {redact(uri)} (a server already: nothing was started)")
    uri = store.absolute(uri)
    require_store(uri)
    port = pick_port(host, port)
    if host not in LOOPBACK:
        typer.secho(f"--host {host}: {EXPOSED}", err=True, fg="yellow")
    with signals_raise():
        try:
            _serve(uri, host, port, console)
        except Terminated:
            say(console, "stopped")
    return None


def require_store(uri: str) -> None:
    """`TrackingError` where nothing was recorded yet: MLflow would make an empty store and show that."""
    path = store.sqlite_path(uri)
    if path is not None and not path.is_file():
        mend = "Train a job here first, or name the store with --uri."
        raise TrackingError("there is no such store", "one that runs were recorded in", mend, redact(uri))
    store.connect(uri)


def pick_port(host: str, port: int) -> int:
    """The port asked for; of 0, the first free one from MLflow's own on."""
    wanted = [port] if port else range(FIRST_PORT, FIRST_PORT + PORTS_TRIED)
    for candidate in wanted:
        if _free(host, candidate):
            return candidate
    taken = f"port {port}" if port else f"ports {FIRST_PORT} to {FIRST_PORT + PORTS_TRIED - 1}"
    mend = "Leave --port out for the next free one." if port else "Name another with --port."
    raise ConfigError(f"{taken} of {host}: in use, or not ours to open", "a free port", mend)


def command(uri: str, host: str, port: int) -> list[str]:
    """The server's command line. The store is not in it (`environment`): a list of processes shows passwords to all."""
    path = store.sqlite_path(uri)
    artifacts = ["--artifacts-destination", str(path.parent / "mlartifacts")] if path else []
    # One worker serves one reader, at a quarter of the memory.
    where = ["--host", host, "--port", str(port), "--workers", "1"]
    return [sys.executable, "-m", "mlflow", "server", *where, *artifacts]


def environment(uri: str) -> dict[str, str]:
    """What the server gets beside ours: the store; no job queue, which is for evaluations of language models."""
    return {**os.environ, "MLFLOW_BACKEND_STORE_URI": uri, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def url(host: str, port: int) -> str:
    """Where a browser on this machine finds it."""
    name = ANYWHERE.get(host, host)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def _serve(uri: str, host: str, port: int, console: Console) -> None:
    with console.status("MLflow starts"), _running(uri, host, port) as server:
        _wait(server, url(host, port))
        say(console, f"MLflow: {url(host, port)}\nstore: {redact(uri)}\nCtrl-C ends it")
        server.wait()
    raise TrackingError(f"MLflow's server ended by itself, code {server.returncode}", "one that stays")


@contextmanager
def _running(uri: str, host: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """In a session of its own: MLflow's command does not take its workers along when it is ended."""
    server = subprocess.Popen(command(uri, host, port), env=environment(uri), start_new_session=True)
    try:
        yield server
    finally:
        _end(server)


def _end(server: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, number)
            server.wait(STOP_S)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def _wait(server: subprocess.Popen[bytes], address: str) -> None:
    until = time.monotonic() + START_S
    while not _answers(address):
        if server.poll() is not None:
            raise TrackingError(f"MLflow's server ended with code {server.returncode}", "one that starts", "See above.")
        if time.monotonic() > until:
            raise TrackingError(f"MLflow's server does not answer after {START_S:.0f} s", "one that starts")
        time.sleep(0.3)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port whose last server just ended is free
        try:
            trial.bind((host, port))
        except OSError:
            return False
    return True
