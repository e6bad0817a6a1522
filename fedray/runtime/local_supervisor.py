"""`python -m fedray.runtime.local_supervisor FOLDER`: runs one local job to its end, as Ray's supervisor does on a
cluster. It starts the command, passes SIGTERM on to it once, kills it after the grace, and writes down how it ended."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from fedray.runtime.job_records import STOP_GRACE_S
from fedray.runtime.local_jobs import identity, write_json

POLL_S = 0.1


def supervise(folder: Path) -> None:
    """Run the job of `folder`; whatever it leaves behind in its process group goes with it."""
    asked = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    stopping: list[float] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopping.append(time.monotonic()))
    with (folder / "log.txt").open("ab") as log:
        env = {**os.environ, "PYTHONUNBUFFERED": "1"}
        job = subprocess.Popen(
            asked["command"], cwd=asked["cwd"], env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    write_json(folder / "process.json", {"supervisor": identity(os.getpid()), "job": identity(job.pid)})
    code = _wait(job, stopping)
    write_json(folder / "end.json", {"exit_code": code, "stopped": bool(stopping), "ended": time.time()})


def _wait(job: "subprocess.Popen[bytes]", stopping: list[float]) -> int:
    told = False
    while job.poll() is None:
        if stopping and not told:
            told = True
            job.terminate()
        if stopping and time.monotonic() - stopping[0] > _grace():
            _kill_group(job.pid)
        time.sleep(POLL_S)
    _kill_group(job.pid)
    return job.returncode


def _grace() -> float:
    text = os.environ.get("RAY_JOB_STOP_WAIT_TIME_S", "")
    return float(text) if text.isdigit() else float(STOP_GRACE_S)


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def main(args: list[str]) -> Any:
    """The folder is the only argument."""
    supervise(Path(args[0]))


if __name__ == "__main__":
    main(sys.argv[1:])
