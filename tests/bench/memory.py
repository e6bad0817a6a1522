"""Peak memory: of this process while a block runs, and of a `fedray train` with all its processes."""

import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import yaml

from fedray.config import RunConfig, make_config


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
