"""`fedray doctor`: what is there, what is missing, what to do. Starts nothing, prints no secret."""

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil
from rich.console import Console
from rich.table import Table

from fedray.config import TrackingConfig
from fedray.runtime.address import reachable

PACKAGES = ("fedray", "torch", "ray", "mlflow", "numpy", "numba", "pandas", "pyarrow")
LEAST_MEMORY_GB, LEAST_DISK_GB = 4.0, 2.0


@dataclass(frozen=True)
class Finding:
    """One line: ok, warn or fail; and what to do about it."""

    level: str
    what: str
    found: str
    do: str = ""


def report(console: Console) -> bool:
    """Print the findings; False if one of them stops fedray from working."""
    findings = list(examine())
    table = Table(box=None, pad_edge=False)
    for title in ("", "what", "found", "what to do"):
        table.add_column(title, overflow="fold")
    colour = {"ok": "green", "warn": "yellow", "fail": "red"}
    for f in findings:
        table.add_row(f"[{colour[f.level]}]{f.level}[/]", f.what, f.found, f.do)
    console.print(table)
    return all(f.level != "fail" for f in findings)


def examine() -> Iterator[Finding]:
    """Every check, in the order of what must work first."""
    yield _python()
    yield from (_package(name) for name in PACKAGES)
    yield _gpu()
    yield _memory()
    yield _disk()
    yield _shared_memory()
    yield _ray_auth()
    yield _tracking()
    yield _data()


def _python() -> Finding:
    version = platform.python_version()
    ok = sys.version_info >= (3, 11)
    return Finding("ok" if ok else "fail", "python", version, "" if ok else "fedray needs Python 3.11 or newer")


def _package(name: str) -> Finding:
    try:
        return Finding("ok", name, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Finding("fail", name, "not installed", "make setup")


def _gpu() -> Finding:
    try:
        import torch
    except ImportError as error:
        return Finding("fail", "gpu", f"torch does not load: {error}", "make setup")
    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        return Finding("ok", "gpu", f"{torch.cuda.device_count()} x {', '.join(sorted(names))}")
    return Finding("ok", "gpu", "none", "fine: clients train on the CPU; runtime.device=cuda would be refused")


def _memory() -> Finding:
    free = psutil.virtual_memory().available / 1e9
    level = "ok" if free >= LEAST_MEMORY_GB else "warn"
    do = "" if level == "ok" else f"below {LEAST_MEMORY_GB:g} GB: use runtime.executor=serial"
    return Finding(level, "memory", f"{free:.1f} GB free, {os.cpu_count()} CPUs", do)


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    level = "ok" if free >= LEAST_DISK_GB else "warn"
    return Finding(level, "disk", f"{free:.1f} GB free here", "" if level == "ok" else "free some space")


def _shared_memory() -> Finding:
    shm = Path("/dev/shm")  # noqa: S108 - Ray's object store lives there
    if not shm.is_dir():
        return Finding("ok", "object store", "no /dev/shm on this system")
    free = shutil.disk_usage(shm).free / 1e9
    do = "" if free >= 1 else "Ray will spill to disk: in a container, raise --shm-size"
    return Finding("ok" if free >= 1 else "warn", "object store", f"/dev/shm {free:.1f} GB free", do)


def _ray_auth() -> Finding:
    address, mode = os.environ.get("RAY_ADDRESS", ""), os.environ.get("RAY_AUTH_MODE", "")
    if not address and mode == "disabled":
        return Finding("warn", "ray", "a local cluster per run, RAY_AUTH_MODE=disabled", "unset it: ports run any code")
    if not address:
        return Finding("ok", "ray", "no RAY_ADDRESS: a local cluster per run, behind Ray's own token")
    if not reachable(address):
        return Finding("fail", "ray", f"nobody answers at {address}", "start the cluster, or unset RAY_ADDRESS")
    local = (urlsplit(address if "://" in address else f"ray://{address}").hostname or "") in (
        "127.0.0.1",
        "localhost",
    )
    if mode == "token" or local:
        return Finding("ok", "ray", f"{address}, auth {mode or 'off, on loopback'}")
    return Finding("warn", "ray", f"{address} without token auth", "set RAY_AUTH_MODE=token: a Ray port runs any code")


def _tracking() -> Finding:
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    default = TrackingConfig().uri
    if uri and uri != default:
        return Finding("ok", "tracking", f"{default}; MLFLOW_TRACKING_URI is set but not read", "use tracking.uri")
    ok = os.access(Path.cwd(), os.W_OK)
    return Finding("ok" if ok else "fail", "tracking", default, "" if ok else "this folder is not writable")


def _data() -> Finding:
    root = os.environ.get("FEDRAY_DATA", "")
    if root and not Path(root).is_dir():
        return Finding("warn", "data", f"FEDRAY_DATA={root} is no folder", "correct it")
    return Finding("ok", "data", f"FEDRAY_DATA={root}" if root else "FEDRAY_DATA not set", "" if root else "optional")
