"""Jobs on this machine, kept like those of a cluster: each in a folder of its own, under a supervisor that outlives
the command line, with the same states, the same exit codes and the same time to end when stopped.

    .fedray/jobs/<submission id>/
      job.json        what was asked, and when
      jobs/           the entrypoint and the resolved job
      log.txt         what it printed
      process.json    the processes, once they run
      end.json        how it ended

Each file is written once, aside and renamed: a reader sees all of it or nothing.
"""

import codecs
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import psutil

from fedray.errors import FedrayError, JobRunningError
from fedray.runtime.job_records import RESUMABLE, JobRecord, Request, state_of

ROOT = Path(".fedray") / "jobs"
START_S = 30.0
POLL_S = 0.2
CHUNK = 1 << 16
SAME_S = 1.5
"""Psutil has the time of boot in whole seconds, and it may pass to the next one between two looks."""


class LocalJobs:
    """The jobs started from this folder; they run in `cwd`."""

    where = "on this machine"

    def __init__(self, root: Path = ROOT, working_dir: Path | None = None) -> None:
        self.root, self._own = root.absolute(), working_dir
        self.cwd = (working_dir or Path()).absolute()

    def jobs(self) -> list[JobRecord]:
        """Every job."""
        return [self.job(file.parent.name) for file in sorted(self.root.glob("[!.]*/job.json"))]

    def job(self, submission_id: str) -> JobRecord:
        """One job as it is now."""
        folder = self.root / submission_id
        asked = _read(folder / "job.json")
        submitted = float(asked["submitted"])
        gone = _gone(folder, asked.get("since_boot", 0.0))  # before the look at the end: it may end between the two
        if end := _read(folder / "end.json"):
            return _ended(submission_id, submitted, end)
        if gone:
            text = "its process is gone without an exit code: killed, or the machine was restarted"
            return JobRecord(submission_id, "resumable", RESUMABLE, submitted, message=text)
        return JobRecord(submission_id, "running" if _read(_process(folder)) else "pending", submitted=submitted)

    def submit(self, request: Request) -> None:
        """Copy the folder under the job's name, start the supervisor."""
        folder = self.root / request.submission_id
        self._write(folder, request)
        with (folder / "log.txt").open("ab") as log:
            subprocess.Popen(
                [sys.executable, "-m", "fedray.runtime.local_supervisor", str(folder)],
                env=surroundings(os.environ, request.env),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )

    def _write(self, folder: Path, request: Request) -> None:
        """All at once by a rename, which fails if the name is taken."""
        asked = {"command": self._command(folder, request), "cwd": str(self.cwd), "submitted": time.time()}
        asked["since_boot"] = time.monotonic()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            aside = Path(tempfile.mkdtemp(prefix=".new-", dir=self.root))
            shutil.copytree(request.folder, aside, dirs_exist_ok=True)
            write_json(aside / "job.json", asked)
            aside.rename(folder)
        except OSError as error:
            if folder.exists():
                raise JobRunningError(
                    f"{folder.name} was submitted just now by somebody else", "one at a time"
                ) from None
            raise FedrayError(f"cannot write {folder}: {error.strerror}", "a writable folder") from error

    def _command(self, folder: Path, request: Request) -> list[str]:
        entrypoint, job_file, *rest = request.command
        own = self._own is not None and (self.cwd / entrypoint).exists()
        return [sys.executable, str((self.cwd if own else folder) / entrypoint), str(folder / job_file), *rest]

    def log(self, submission_id: str) -> str:
        """All it has printed so far."""
        file = self.root / submission_id / "log.txt"
        return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""

    def follow(self, submission_id: str, emit: Callable[[str], None]) -> None:
        """All it has printed and will print, until it ends."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        file = self.root / submission_id / "log.txt"
        file.touch()
        with file.open("rb") as log:
            while True:
                over = self.job(submission_id).over
                _pass_on(log, decoder, emit)
                if over:
                    return
                time.sleep(POLL_S)

    def stop(self, submission_id: str) -> bool:
        """SIGTERM, and SIGKILL after the grace: both by the supervisor."""
        if self.job(submission_id).over:
            return False
        begun = time.monotonic()
        while not (process := _read(_process(self.root / submission_id))) and time.monotonic() - begun < START_S:
            time.sleep(POLL_S)
        for who in ("supervisor", "job"):
            if process and is_alive(process[who]):
                os.kill(process[who]["pid"], signal.SIGTERM)
                return True
        return False


def surroundings(here: Mapping[str, str], asked: Mapping[str, str]) -> dict[str, str]:
    """This process's environment and what was asked; without a dashboard's address, which Ray itself cannot join."""
    kept = {
        name: value for name, value in here.items() if name != "RAY_ADDRESS" or "://" not in value or "ray://" in value
    }
    return {**kept, **asked}


def _pass_on(log: BinaryIO, decoder: codecs.IncrementalDecoder, emit: Callable[[str], None]) -> None:
    while found := log.read(CHUNK):
        if text := decoder.decode(found):
            emit(text)


def _process(folder: Path) -> Path:
    return folder / "process.json"


def _gone(folder: Path, submitted: float) -> bool:
    """Whether neither the supervisor nor, where that was killed, the job itself runs any more. submitted: by the clock
    that nobody sets, which starts anew with the machine."""
    process = _read(_process(folder))
    if not process:
        return not 0 <= time.monotonic() - submitted <= START_S
    return not any(is_alive(process[who]) for who in ("supervisor", "job"))


def _ended(submission_id: str, submitted: float, end: dict[str, Any]) -> JobRecord:
    code, stopped = end["exit_code"], end["stopped"]
    text = "" if stopped or code == 0 else f"ended with exit code {code}"
    return JobRecord(submission_id, "stopped" if stopped else state_of(code), code, submitted, end["ended"], text)


def identity(pid: int) -> dict[str, Any]:
    """A process, so that another one with its number later is not taken for it."""
    return {"pid": pid, "created": _since_boot(psutil.Process(pid))}


def is_alive(who: dict[str, Any]) -> bool:
    """Whether that very process still runs."""
    try:
        process = psutil.Process(who["pid"])
        same = abs(_since_boot(process) - who["created"]) < SAME_S
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _since_boot(process: psutil.Process) -> float:
    """When it was made. By the time of day it would be another process as soon as somebody sets the clock."""
    return process.create_time() - psutil.boot_time()


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Aside, then renamed."""
    aside = file.with_name(file.name + ".part")
    aside.write_text(json.dumps(content), encoding="utf-8")
    aside.rename(file)


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
