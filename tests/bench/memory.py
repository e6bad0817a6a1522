"""Memory: the peak of this process while a block runs, of a `fedray train` with all its processes, and whether it is
flat: `python -m tests.bench.memory JOB [--set ...]` prints what every process of a training has early and late.

    early, late     medians over the ten rounds before the 20th and before the last
    own             memory that no other process has any part in (Pss_Anon)
    store           its part of the object store's pages (Pss_Shmem): who touched a page last shares it with the others
    handles         open files, sockets, pipes
"""

import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import yaml

from fedray.config import RunConfig, make_config
from fedray.status_line import parse_round

EARLY, WINDOW = 20, 10
FLAT = 0.01


class Look(NamedTuple):
    """A process at one moment: bytes, and open handles."""

    pss: float
    own: float
    store: float
    handles: float


KINDS = {
    "ray::ClientActor": "client actor",
    "ray::DriverActor": "driver actor",
    "ray::IDLE": "idle worker",
    "gcs_server": "GCS",
    "raylet/raylet": "raylet",
    "default_worker": "idle worker",
    "runtime_env/agent": "runtime env agent",
    "dashboard/agent": "dashboard agent",
    "log_monitor": "log monitor",
    "monitor.py": "monitor",
    "dashboard": "dashboard",
}
"""What is in a command line -> what we call it; the first that fits."""


def main(args: list[str]) -> None:
    """Train, look, print; fails where memory or handles grow."""
    rows = table(watched(args))
    print(rows.text)
    if rows.grown:
        raise SystemExit(f"not flat: {', '.join(rows.grown)}")


def quiet(config: RunConfig, rounds: int) -> RunConfig:
    """The same run for so many rounds in one process, without controls and tracking."""
    body = config.model_dump(mode="json")
    body["train"]["rounds"], body["evaluation"]["controls"] = rounds, False
    body["runtime"]["executor"], body["tracking"]["backend"] = "serial", "none"
    return make_config(body)


def peak_of(config: RunConfig) -> float:
    """Peak bytes of a `fedray train` of this configuration."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "job.yaml"
        file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
        return peak_memory([str(file)], Path(folder), 0.1)["peak_gib"] * 2**30


def peak_memory(args: list[str], cwd: Path, every_s: float = 0.5) -> dict[str, float]:
    """Peak sum of PSS over a `fedray train` and all processes it started, and how flat it is over the rounds."""
    process = subprocess.Popen([sys.executable, "-m", "fedray.cli", "train", *args], cwd=cwd, stdout=subprocess.DEVNULL)
    seen: list[tuple[float, float]] = []
    begun = time.perf_counter()
    while process.poll() is None:
        seen.append((time.perf_counter() - begun, pss(process.pid)))
        time.sleep(every_s)
    if process.returncode:
        raise RuntimeError(f"fedray train {' '.join(args)} ended with {process.returncode}")
    values = np.array([v for _, v in seen])
    half = values[len(values) // 2 : -4]
    return {
        "peak_gib": float(values.max()) / 2**30,
        "third_quarter_gib": float(half[: len(half) // 2].max()) / 2**30,
        "last_quarter_gib": float(half[len(half) // 2 :].max()) / 2**30,
        "seconds": seen[-1][0],
    }


def pss(pid: int) -> float:
    """Sum of proportional set sizes of a process and its descendants, bytes."""
    total = 0.0
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0.0
    for process in family:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


class Watched(NamedTuple):
    """process -> what it had, and after how many rounds."""

    looks: dict[str, list[tuple[int, Look]]]
    last: int


def watched(args: list[str], every_s: float = 0.5) -> Watched:
    """Looks at all processes of a `fedray train`."""
    looks: dict[int, list[tuple[int, Look]]] = defaultdict(list)
    kinds, round_ = dict[int, str](), [0]
    command = [sys.executable, "-m", "fedray.cli", "train", *args]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        reader = threading.Thread(target=_follow, args=(process, round_))
        reader.start()
        while process.poll() is None:
            for each in _family(process.pid):
                if found := look(each):
                    looks[each.pid].append((round_[0], found))
                    kinds[each.pid] = kind_of(each, kinds.get(each.pid, "another"))
            time.sleep(every_s)
        reader.join()
    if process.returncode:
        raise RuntimeError(f"fedray train {' '.join(args)} ended with {process.returncode}")
    kinds[process.pid] = "entrypoint"
    names = numbered(kinds)
    return Watched({names[pid]: found for pid, found in looks.items()}, round_[0])


def _follow(process: "subprocess.Popen[str]", round_: list[int]) -> None:
    assert process.stdout
    for line in process.stdout:
        print(line, end="", file=sys.stderr, flush=True)
        if said := parse_round(line):
            round_[0] = said.round


def _family(pid: int) -> list[psutil.Process]:
    try:
        return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def look(process: psutil.Process) -> Look | None:
    """None for one that is gone."""
    try:
        text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        kib = {line.split(":")[0]: float(line.split()[1]) for line in text.splitlines()[1:]}
        return Look(*(kib[k] * 1024 for k in ("Pss", "Pss_Anon", "Pss_Shmem")), process.num_fds())
    except (psutil.Error, OSError):
        return None


def kind_of(process: psutil.Process, otherwise: str) -> str:
    """What kind of process that is by now: a worker of Ray gets its name with its actor."""
    try:
        command = " ".join(process.cmdline())
    except psutil.Error:
        return otherwise
    return next((kind for part, kind in KINDS.items() if part in command), otherwise)


def numbered(kinds: dict[int, str]) -> dict[int, str]:
    """pid -> its name: where there are several of a kind, each with a number."""
    names: dict[int, str] = {}
    for pid, kind in kinds.items():
        alike = [p for p, k in kinds.items() if k == kind]
        names[pid] = f"{kind} {alike.index(pid) + 1}" if len(alike) > 1 else kind
    return names


class Table(NamedTuple):
    """Markdown, and what grew by more than a hundredth."""

    text: str
    grown: list[str]


def table(seen: Watched) -> Table:
    """A row for each process that lived through both windows, and their sum."""
    lines = [f"| process | PSS, MiB: round {EARLY} | {seen.last} | own | | store | | handles | |", "|---" * 9 + "|"]
    both = {name: pair for name, looks in seen.looks.items() if (pair := early_and_late(looks, seen.last))}
    if not both:
        raise SystemExit(f"no process was seen in both windows: {seen.last} rounds, or rounds too short to look at")
    whole = tuple(Look(*map(sum, zip(*(p[i] for p in both.values()), strict=True))) for i in range(2))
    grown = []
    for name, (a, b) in {**both, "all": whole}.items():
        cells = [f"{v:.1f}" for x, y in zip(a[:3], b[:3], strict=True) for v in (x / 2**20, y / 2**20)]
        lines.append(f"| {name} | {' | '.join(cells)} | {a.handles:.0f} | {b.handles:.0f} |")
        if b.own > a.own * (1 + FLAT) or b.handles > a.handles:
            grown.append(f"{name} (own {a.own / 2**20:.1f} -> {b.own / 2**20:.1f} MiB, {b.handles - a.handles:+.0f})")
    return Table("\n".join(lines), grown)


def early_and_late(looks: list[tuple[int, Look]], last: int) -> tuple[Look, Look] | None:
    """Medians of the two windows; what follows the last round (the test, the end) is in neither."""
    windows = [[x for r, x in looks if end - WINDOW <= r < end] for end in (EARLY, last)]
    if not all(windows):
        return None
    early, late = (Look(*map(statistics.median, zip(*w, strict=True))) for w in windows)
    return early, late


class PeakHere:
    """The peak PSS of this process while the block runs."""

    def __enter__(self):
        self.peak, self._stop = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *args):
        self._stop.set()
        self._thread.join()

    def _watch(self):
        while not self._stop.wait(0.05):
            self.peak = max(self.peak, psutil.Process().memory_full_info().pss)


if __name__ == "__main__":
    main(sys.argv[1:])
