"""The batch script, run with stand-ins for Slurm's commands: what it would start, and with which token."""

import os
import re
import stat
import subprocess
from pathlib import Path

import pytest
from ray.scripts import symmetric_run

from tests.cluster.files import SBATCH

SRUN = """#!/usr/bin/env bash
case "$*" in *"hostname -I"*) echo "192.0.2.7 198.51.100.7"; exit;; esac
printf '%s\\n' "$@" > srun.args
env | grep ^RAY_ > srun.env
cp -p "$RAY_AUTH_TOKEN_PATH" srun.token
"""
SLURM = {
    "SLURM_JOB_ID": "17",
    "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_CPUS_PER_TASK": "16",
}


def run(script: str, folder: Path, *args: str) -> list[str]:
    """What srun would be given, run in `folder`; srun.env and srun.token tell the rest."""
    commands = folder / "bin"
    commands.mkdir()
    for name, text in {"srun": SRUN, "scontrol": "#!/bin/sh\nprintf 'n1\\nn2\\n'\n"}.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "activate").touch()
    there = {"PATH": f"{commands}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(folder), **SLURM}
    subprocess.run(["bash", "-s", *args], input=script, text=True, cwd=folder, env=there, check=True, timeout=30)
    return (folder / "srun.args").read_text().splitlines()


def check(script: str, folder: Path) -> None:
    """All nodes, one cluster behind a token of its own, and the job after the dashes."""
    args = run(script, folder, "jobs/quickstart.yaml", "night-1")
    there = dict(line.split("=", 1) for line in (folder / "srun.env").read_text().splitlines())
    check_token(there, folder)
    assert there["RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT"] == "300"
    start = args[args.index("ray") : args.index("--")]
    assert start[:4] == ["ray", "symmetric-run", "--address", "192.0.2.7:6379"]
    assert start[4:] == ["--min-nodes", "2", "--num-cpus=16"]
    assert {"--nodes=2", "--ntasks=2", "--kill-on-bad-exit=1"} <= set(args[: args.index("ray")])
    job = args[args.index("--") + 1 :]
    assert job[:6] == ["fedray", "train", "jobs/quickstart.yaml", "--resume-or-start", "--run-id", "night-1"]
    assert "runtime.address=auto" in job


def check_token(there: dict[str, str], folder: Path) -> None:
    """64 hex digits that only the user may read, gone with the job."""
    assert there["RAY_AUTH_MODE"] == "token"
    token = folder / "srun.token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert re.fullmatch("[0-9a-f]{64}", token.read_text())
    assert not Path(there["RAY_AUTH_TOKEN_PATH"]).exists()


def test_bash_reads_it() -> None:
    subprocess.run(["bash", "-n", str(SBATCH)], check=True)


def test_it_starts_one_job_on_all_nodes(tmp_path: Path) -> None:
    check(SBATCH.read_text(encoding="utf-8"), tmp_path)


FAULTS = {
    "export RAY_AUTH_MODE=token": "export RAY_AUTH_MODE=disabled",
    "chmod 0600": "chmod 0644",
    "TIMEOUT=300": "TIMEOUT=30",
    '--num-cpus="$SLURM_CPUS_PER_TASK" --': '--num-cpus="$SLURM_CPUS_PER_TASK"',
    "--resume-or-start ": "",
    "--min-nodes": "--nodes",
    "trap 'rm -f": "trap 'echo",
}


@pytest.mark.parametrize("text", FAULTS)
def test_faults_are_caught(text: str, tmp_path: Path) -> None:
    script = SBATCH.read_text(encoding="utf-8")
    assert text in script
    with pytest.raises((AssertionError, ValueError)):
        check(script.replace(text, FAULTS[text]), tmp_path)


def test_this_ray_can_run_it() -> None:
    options = {o for p in symmetric_run.symmetric_run.params for o in p.opts}
    assert {"--address", "--min-nodes"} <= options
    start = symmetric_run.curate_and_validate_ray_start_args(["--address", "h:6379", "--num-cpus=16"])
    assert start == ["--num-cpus=16"]
