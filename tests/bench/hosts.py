"""Hosts for a Ray cluster, all of them on this machine: the machine itself several times over, or hosts of their own.

A host of its own is a network namespace with an address on a bridge, a host name and a /tmp: under /tmp it shares with
the others the folders it is given, and nothing else. Who submits jobs is on one more, which runs no Ray. It takes root.
Every process that is started on a host has `MARK` in its environment, by which it and all it starts are found again.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

MARK = "FEDRAY_BENCH_HOST"
USER = "user"
ENTER = """
set -e
for folder in "$@"; do
  if [ "$folder" = -- ]; then break; fi
  case "$folder" in /tmp/*) mkdir -p "$HOST_TMP${folder#/tmp}"; mount --bind "$folder" "$HOST_TMP${folder#/tmp}";; esac
  shift
done
shift
mount --rbind "$HOST_TMP" /tmp
hostname "$HOST_NAME"
exec "$@"
"""
"""In a mount namespace of its own: this host's /tmp, with the shared folders that are under /tmp still in it."""


class Hosts:
    """One machine under several names: distinct ports, the same address."""

    def __init__(self, names: Sequence[str], folder: Path) -> None:
        self.names, self.folder = tuple(names), folder
        ports = iter(free_ports(4 * len(self.names)))
        self._ports = {n: {k: next(ports) for k in ("gcs", "dashboard", "agent", "client")} for n in self.names}

    def __enter__(self) -> "Hosts":
        return self

    def __exit__(self, *_: Any) -> None:
        self.kill()

    def ip(self, name: str) -> str:
        """Where the others reach it."""
        return "127.0.0.1"

    def port(self, name: str, which: str) -> int:
        """Of gcs, dashboard, agent or client."""
        return self._ports[name][which]

    def ray_arguments(self, name: str) -> list[str]:
        """That several raylets on one machine need."""
        temp = self.folder / name
        temp.mkdir(exist_ok=True)
        return [f"--temp-dir={temp}", f"--dashboard-agent-listen-port={self.port(name, 'agent')}"]

    def command(self, name: str, command: Sequence[str]) -> list[str]:
        """`command`, on that host."""
        return list(command)

    def run(self, name: str, command: Sequence[str], env: Mapping[str, str], **more: Any) -> tuple[int, str]:
        """(exit code, stdout and stderr)"""
        done = subprocess.run(
            self.command(name, command),
            env={**env, **self.mark(name)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **more,
        )
        return done.returncode, done.stdout

    def mark(self, name: str) -> dict[str, str]:
        """What is in the environment of all its processes."""
        return {MARK: f"{self.folder}:{name}"}

    def processes(self, name: str = "") -> Iterator[psutil.Process]:
        """Those of a host, or of all."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get(MARK, "").startswith(f"{self.folder}:{name}"):
                    yield process

    def kill(self, name: str = "") -> int:
        """SIGKILL to everything on that host, or on all: how many processes went."""
        gone, end = 0, time.monotonic() + 30
        while (found := list(self.processes(name))) and time.monotonic() < end:
            for process in found:
                with contextlib.suppress(psutil.Error):
                    process.send_signal(signal.SIGKILL)
                    gone += 1
            psutil.wait_procs(found, 5)
        return gone

    def running(self, what: str) -> dict[str, int]:
        """How many processes with that at the start of their command line there are on each host."""
        found: dict[str, int] = {}
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if " ".join(process.cmdline()).startswith(what):
                    name = process.environ()[MARK].rpartition(":")[2]
                    found[name] = found.get(name, 0) + 1
        return dict(sorted(found.items()))


class OwnHosts(Hosts):
    """Each in a network and a mount namespace of its own. shared: folders that all see."""

    PORTS = {"gcs": 6379, "dashboard": 8265}

    def __init__(self, names: Sequence[str], folder: Path, shared: Sequence[Path]) -> None:
        self.names, self.folder = (*names, USER), folder
        self._shared = [str(s.resolve()) for s in shared]
        self._id = f"fr{os.getpid()}"

    def __enter__(self) -> "OwnHosts":
        try:
            self._made()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _made(self) -> None:
        bridge = self._space("net")
        ip("netns", "add", bridge)
        ip("-n", bridge, "link", "add", "name", "br0", "type", "bridge")
        ip("-n", bridge, "link", "set", "br0", "up")
        for i, name in enumerate(self.names):
            space = self._space(name)
            (self.folder / name).mkdir()
            ip("netns", "add", space)
            ip("-n", bridge, "link", "add", "name", f"v{i}", "type", "veth", "peer", "name", "eth0", "netns", space)
            ip("-n", bridge, "link", "set", f"v{i}", "master", "br0", "up")
            ip("-n", space, "addr", "add", f"{self.ip(name)}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                ip("-n", space, "link", "set", link, "up")
            ip("-n", space, "route", "add", "default", "dev", "eth0")

    def __exit__(self, *_: Any) -> None:
        self.kill()
        for name in (*self.names, "net"):
            subprocess.run(["ip", "netns", "del", self._space(name)], capture_output=True, check=False)

    def _space(self, name: str) -> str:
        return f"{self._id}-{name}"

    def ip(self, name: str) -> str:
        """On the bridge."""
        return f"10.77.0.{self.names.index(name) + 1}"

    def port(self, name: str, which: str) -> int:
        """Ray's own: nobody else is there."""
        return self.PORTS[which]

    def ray_arguments(self, name: str) -> list[str]:
        """None: it is a host like any other."""
        return []

    def command(self, name: str, command: Sequence[str]) -> list[str]:
        """In its namespaces."""
        where = {"HOST_TMP": str(self.folder / name), "HOST_NAME": name}
        enter = ["ip", "netns", "exec", self._space(name), "unshare", "--mount", "--uts", "env"]
        enter += [f"{k}={v}" for k, v in where.items()]
        return [*enter, "sh", "-c", ENTER, "enter", *self._shared, "--", *command]

    def unplugged(self, name: str, seconds: float) -> None:
        """Its cable out for so long."""
        cable = "-n", self._space("net"), "link", "set", f"v{self.names.index(name)}"
        ip(*cable, "down")
        try:
            time.sleep(seconds)
        finally:
            ip(*cable, "up")


def ip(*args: str) -> None:
    """The command of iproute2."""
    subprocess.run(["ip", *args], check=True, capture_output=True)


def missing() -> str:
    """Why there can be no hosts of their own here; empty where there can."""
    if lacking := [c for c in ("ip", "unshare", "mount", "hostname") if not shutil.which(c)]:
        return f"no {', '.join(lacking)} here"
    if os.geteuid() != 0:
        return "network namespaces take root"
    name = f"fr{os.getpid()}-try"
    try:
        ip("netns", "add", name)
        ip("-n", name, "link", "add", "name", "a0", "type", "veth", "peer", "name", "b0")
        subprocess.run(["unshare", "--mount", "--uts", "true"], check=True, capture_output=True)
    except subprocess.CalledProcessError as error:
        return (error.stderr or b"").decode().strip() or "namespaces cannot be made here"
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return ""


def free_ports(n: int) -> list[int]:
    """All different."""
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.socket()) for _ in range(n)]
        for s in taken:
            s.bind(("127.0.0.1", 0))
        return [int(s.getsockname()[1]) for s in taken]
