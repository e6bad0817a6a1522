"""What goes with a job: its folder, small by construction, its command and its environment. Nothing is sent from here.

A cluster's nodes have fedray; the job's folder holds one resolved job file and a three-line entrypoint, and whatever a
`--working-dir` has. Data are not sent: they are on storage that the nodes see.
"""

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fedray.config import RunConfig, to_yaml
from fedray.errors import JobError, NotShippableError
from fedray.runtime.job_records import STOP_GRACE_S

ENTRYPOINT = Path("jobs") / "train.py"
ENTRYPOINT_TEXT = '''"""The same job as `fedray {command}`."""

import sys

from fedray.cli import run

if __name__ == "__main__":
    sys.exit(run(["{command}", *sys.argv[1:]]))
'''
MIB = 1 << 20
BIG_FILE, MOST = 10 * MIB, 100 * MIB
"""A file worth a remark, and all that a folder may weigh. Ray itself takes 512 MiB, into the head node's memory."""

FORWARDED = (
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_INSECURE_TLS",
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE",
)
"""Variables that go with a job where they are set; everything else by `--env`. Not Ray's token: the cluster has its
own; nor FEDRAY_DATA: it names a folder of this machine."""

WRITTEN = ("tracking.uri", "encoding.store", "runtime.checkpoint.path")
"""Settings that name what a run writes and others read."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Job(NamedTuple):
    """What is sent: the run's configuration (of a sweep, its base), its file in the job's folder and that file's text,
    and the command that reads it."""

    config: RunConfig
    file: str
    text: str
    command: Literal["train", "tune"] = "train"

    @property
    def entrypoint(self) -> Path:
        """`jobs/train.py`"""
        return ENTRYPOINT.with_stem(self.command)


def training(config: RunConfig) -> Job:
    """A training, resolved."""
    return Job(config, f"jobs/{config.name}.yaml", to_yaml(config))


def command(job: Job, run_id: str, seeds: str = "") -> list[str]:
    """The entrypoint's argv after `python`: it starts the run or, where that leaves checkpoints, goes on with it."""
    more = ["--resume-or-start"] if job.config.runtime.checkpoint.every else []
    more += ["--seeds", seeds] if seeds else []
    return [str(job.entrypoint), job.file, "--run-id", run_id, *more]


def write_folder(folder: Path, job: Job, run_id: str, extra: Path | None = None) -> None:
    """Fill `folder`: the entrypoint, the resolved job, and the files of `extra`, whose own entrypoint wins.

    The run id in the job file keeps two runs of one job apart: Ray unpacks equal folders at one place.
    """
    if extra is not None:
        shutil.copytree(extra, folder, ignore=_left_out, dirs_exist_ok=True, ignore_dangling_symlinks=True)
    entrypoint, file = folder / job.entrypoint, folder / job.file
    for each in (entrypoint, file):
        each.parent.mkdir(parents=True, exist_ok=True)
    if not entrypoint.exists():
        entrypoint.write_text(ENTRYPOINT_TEXT.format(command=job.command), encoding="utf-8")
    file.write_text(f"# run {run_id}, fingerprint {job.config.fingerprint()}\n{job.text}", encoding="utf-8")


def own_package() -> tuple[Path, ...]:
    """This checkout's fedray, to be sent along."""
    return (Path(__file__).parents[1],)


def _left_out(folder: str, names: list[str]) -> set[str]:
    """Hidden files, caches and links to folders stay behind."""
    links = {n for n in names if (Path(folder) / n).is_symlink() and (Path(folder) / n).is_dir()}
    return links | {n for n in names if n.startswith(".") or n == "__pycache__"}


def check_folder(folder: Path | None) -> None:
    """Refuse a `--working-dir` that is none."""
    if folder is not None and not folder.is_dir():
        raise NotShippableError(f"--working-dir {folder} is no folder", "a folder")


def check_size(folder: Path) -> list[str]:
    """Remarks on big files; `NotShippableError` that names the biggest if the folder is too big as a whole."""
    sizes = sorted(((f.stat().st_size, f) for f in _files(folder)), reverse=True)
    total = sum(size for size, _ in sizes)
    if total > MOST:
        named = ", ".join(_said(f, size, folder) for size, f in sizes[:5])
        raise NotShippableError(
            f"{folder} weighs {total / MIB:,.0f} MiB; its biggest files are {named}",
            f"at most {MOST // MIB} MiB in a job's folder",
            "Put the data on storage that the cluster sees, give its absolute path as data.path, and leave it out.",
        )
    return [f"{_said(f, size, folder)} goes with every submission" for size, f in sizes if size > BIG_FILE]


def _files(folder: Path) -> Iterator[Path]:
    names = [p.name for p in folder.iterdir()]
    for name in sorted(set(names) - _left_out(str(folder), names)):
        entry = folder / name
        if entry.is_dir():
            yield from _files(entry)
        elif entry.is_file():
            yield entry


def _said(file: Path, size: int, folder: Path) -> str:
    return f"{file.relative_to(folder)} ({size / MIB:,.0f} MiB)"


def check_paths(config: RunConfig, extra: Path | None, env: Mapping[str, str]) -> None:
    """Refuse relative paths of what a run reads, unless the folder that is sent has them or FEDRAY_DATA goes along."""
    for key, path in reads(config):
        if not is_relative(path) or "FEDRAY_DATA" in env or (extra is not None and _goes_with(extra, path)):
            continue
        raise NotShippableError(
            f"{key} {path!r} is relative, and the job's folder on the cluster does not have it",
            "an absolute path on storage that every node sees",
            f"Give one with --set {key}=/PATH, or the folder that holds it with --env FEDRAY_DATA=/PATH, "
            "or send the folder with --working-dir.",
        )


def _goes_with(extra: Path, path: str) -> bool:
    """Whether it is there, and not behind a link."""
    there = (extra / path).resolve()
    return there.exists() and there.is_relative_to(extra.resolve())


def reads(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Keys and values of the paths of data and precomputed features."""
    dumped = config.model_dump(mode="json")
    sections = {"data": dumped["data"], **{f"encoders.{name}": found for name, found in dumped["encoders"].items()}}
    for section, found in sections.items():
        yield from ((f"{section}.{k}", found[k]) for k in ("path", "ids") if found.get(k))


def goes_away(config: RunConfig) -> list[str]:
    """What a run would write into the job's folder on the cluster, which Ray removes after the job."""
    dumped = config.model_dump(mode="json")
    if config.tracking.backend == "none":
        dumped.pop("tracking")
    if not config.encoders:
        dumped.pop("encoding")
    if not config.runtime.checkpoint.every:
        dumped.pop("runtime")
    named = ((key, _value(dumped, key)) for key in WRITTEN)
    return [f"{k}={v}" for k, v in named if v and is_relative(v.removeprefix("sqlite:///"))]


def _value(dumped: Mapping[str, Any], key: str) -> str:
    found: Any = dumped
    for part in key.split("."):
        found = found.get(part, {})
    return str(found or "")


def is_relative(path: str) -> bool:
    """Neither absolute, nor a URI, nor one that the cluster's nodes expand ($NAME, ~)."""
    return "://" not in path and not path.startswith(("/", "$", "~"))


def job_env(asked: Sequence[str], here: Mapping[str, str], forwarded: Sequence[str] = FORWARDED) -> dict[str, str]:
    """The job's variables: time to end when stopped, what is forwarded, what `--env NAME[=VALUE]` asks."""
    found = {name: here[name] for name in forwarded if here.get(name)}
    return {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_GRACE_S), **found, **dict(_asked(each, here) for each in asked)}


def _asked(each: str, here: Mapping[str, str]) -> tuple[str, str]:
    name, equals, value = each.partition("=")
    if not _NAME.fullmatch(name):
        raise JobError("--env with something that is no variable's name before the =", "NAME or NAME=VALUE")
    if not equals and name not in here:
        raise JobError(f"--env {name}: not set here", "a variable that is set, or NAME=VALUE")
    return name, value if equals else here[name]
