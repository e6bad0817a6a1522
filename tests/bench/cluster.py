"""A job on a real cluster, from `ray start` to the last round: `python -m tests.bench.cluster [--hosts]`, a table.

A head without CPUs and two workers behind a token, started with `ray start` on this machine; with `--hosts` on three
hosts of their own, that share one folder (see `tests.bench.hosts`). The job is submitted, looked at, stopped and
submitted again; a worker is lost (on hosts of their own: to the network) and comes back; then the head is killed with
SIGKILL, the cluster started once more, the job submitted there, and it goes on. Every round's metrics, the test
metrics and every user's are compared with those of a run in one process, to the bit.
"""

import json
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.bench.hosts import USER, Hosts, OwnHosts, missing

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
JOB = str(ROOT / "jobs" / "quickstart.yaml")
HEAD, WORKERS = "head", ("worker1", "worker2")
ROUNDS = 800
SETS = {
    "train.rounds": ROUNDS,
    "evaluation.controls": "false",
    "evaluation.local_only": "false",
    "runtime.checkpoint.every": 5,
    "tracking.backend": "jsonl",
}
RUN = "night"
WAIT_S = 300.0
SHORT_S, LONG_S = 5.0, 60.0
"""Without network: Ray waits out the one, and gives a node up in the other."""


def main(args: list[str]) -> None:
    """All of it; fails where a step does."""
    if args not in ([], ["--hosts"]):
        raise SystemExit("python -m tests.bench.cluster [--hosts]")
    if args and (why := missing()):
        print(f"skipped: no hosts of their own: {why}")
        return
    folder = Path(tempfile.mkdtemp(prefix="fr"))  # short: Ray keeps sockets in there
    shared = folder / "shared"
    shared.mkdir()
    names = (HEAD, *WORKERS)
    steps = Steps()
    try:
        with OwnHosts(names, folder, [ROOT, BIN.resolve(), shared]) if args else Hosts(names, folder) as hosts:
            scenario(Cluster(hosts, shared), shared, steps)
    finally:
        print(steps.table())
        shutil.rmtree(folder, ignore_errors=True)


class Steps:
    """What was done, how long it took, how it ended."""

    def __init__(self) -> None:
        self._rows: list[tuple[str, float, str]] = []

    @contextmanager
    def step(self, name: str) -> Iterator[Callable[[str], None]]:
        """Gives a function to say how it ended."""
        said, begun = ["ok"], time.monotonic()
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            yield said.append
        except BaseException as error:
            said.append(f"FAILED: {type(error).__name__}")
            raise
        finally:
            self._rows.append((name, time.monotonic() - begun, said[-1]))

    def table(self) -> str:
        """Markdown."""
        rows = [f"| {name} | {seconds:.1f} | {end} |" for name, seconds, end in self._rows]
        return "\n".join(["| step | s | |", "|---|---|---|", *rows])


class Cluster:
    """Ray on all the hosts, and fedray's command line of somebody who has the token."""

    def __init__(self, hosts: Hosts, shared: Path) -> None:
        self.hosts, self._shared = hosts, shared
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_", "FEDRAY_"))}
        quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
        own = {"PYTHONPATH": str(ROOT), "PATH": f"{BIN}:{os.environ['PATH']}"}
        self._env = {**kept, **quiet, **own, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.address = f"http://{hosts.ip(HEAD)}:{hosts.port(HEAD, 'dashboard')}"

    def start(self) -> None:
        """Head first; it listens to the other hosts where they are other hosts."""
        ip, gcs = self.hosts.ip(HEAD), self.hosts.port(HEAD, "gcs")
        head = ["--head", "--num-cpus=0", f"--port={gcs}", f"--dashboard-port={self.hosts.port(HEAD, 'dashboard')}"]
        if USER in self.hosts.names:
            head += [f"--dashboard-host={ip}"]
        else:
            head += [f"--ray-client-server-port={self.hosts.port(HEAD, 'client')}"]
        self._ray_start(HEAD, head)
        for name in WORKERS:
            self.join(name)
        self.until(lambda: self.fedray("list", "--json")[0] == 0, "the dashboard answers")

    def join(self, name: str) -> None:
        """A worker."""
        self._ray_start(name, [f"--address={self.hosts.ip(HEAD)}:{self.hosts.port(HEAD, 'gcs')}", "--num-cpus=1"])

    def _ray_start(self, name: str, args: list[str]) -> None:
        own = [f"--node-ip-address={self.hosts.ip(name)}", "--object-store-memory=200000000", "--disable-usage-stats"]
        command = [str(BIN / "ray"), "start", *args, *own, *self.hosts.ray_arguments(name)]
        code, said = self.hosts.run(name, command, self._env, cwd="/", timeout=120)
        if code:
            raise RuntimeError(f"ray start on {name} ended with {code}:\n{said}")

    def fedray(self, *args: str, place: tuple[str, ...] | None = None) -> tuple[int, str]:
        """(exit code, what it printed)"""
        place = ("--address", self.address) if place is None else place
        command = [sys.executable, "-m", "fedray.cli", *args, *place]
        return self.hosts.run(USER, command, self._env, cwd=self._shared, timeout=600)

    def submit(self, run: str, *more: str, place: tuple[str, ...] | None = None, **sets: str) -> tuple[int, str]:
        """The job, with everything that outlives it in the shared folder."""
        laid = {**SETS, "runtime.checkpoint.path": f"{self._shared}/checkpoints", **sets}
        laid["tracking.uri"] = f"{self._shared}/runs-{run}"
        over = [part for k, v in laid.items() for part in ("--set", f"{k}={v}")]
        return self.fedray("submit", JOB, "--run-id", run, *over, *more, place=place)

    def status(self) -> dict[str, Any]:
        """As scripts get it."""
        code, said = self.fedray("status", RUN, "--json")
        return {"code": code, **(json.loads(said) if said.startswith("{") else {"said": said})}

    def until_round(self, round_: int) -> dict[str, Any]:
        """The status, once the job has come so far."""
        found: dict[str, Any] = {}

        def there() -> bool:
            found.update(self.status())
            if found.get("state") not in ("pending", "running"):
                raise RuntimeError(f"the job is over before round {round_}:\n{self.fedray('logs', RUN)[1]}")
            return bool(found["progress"] and found["progress"]["round"] >= round_)

        self.until(there, f"round {round_}")
        return found

    def until(self, fact: Callable[[], bool], what: str) -> None:
        """Wait for it."""
        end = time.monotonic() + WAIT_S
        while not fact():
            if time.monotonic() > end:
                raise TimeoutError(f"not so after {WAIT_S:.0f} s: {what}")
            time.sleep(0.5)


def scenario(cluster: Cluster, shared: Path, steps: Steps) -> None:
    """What somebody does in a night."""
    with steps.step("the same job in one process (`--local`)") as said:
        sets = {"runtime.executor": "serial"}
        must(cluster.submit("undisturbed", "--wait", place=("--local",), **sets), 0)
        expected = recorded(shared, "undisturbed")
        said(f"{len(expected['rounds'])} rounds")
    with steps.step("`ray start`: a head without CPUs, two workers") as said:
        cluster.start()
    with steps.step("`fedray submit`"):
        must(cluster.submit(RUN), 0)
    with steps.step("`fedray status` until it is under way") as said:
        found = cluster.until_round(20)
        said(f"round {found['progress']['round']}; client actors: {cluster.hosts.running('ray::ClientActor')}")
    with steps.step("`fedray logs`") as said:
        said(f"{must(cluster.fedray('logs', RUN), 0).count('round ')} rounds told of")
    with steps.step("`fedray stop --wait`") as said:
        must(cluster.fedray("stop", RUN, "--wait"), 0)
        found = cluster.status()
        check(found["code"] == 130 and found["state"] == "stopped", f"stopped: {found}")
        stopped = last_checkpoint(shared)
        said(f"exit code 130, a checkpoint of round {stopped}")
    with steps.step("submitted again") as said:
        must(cluster.submit(RUN), 0)
        found = cluster.until_round(stopped + 20)
        check(found["attempt"] == 2 and f"goes on after round {stopped}" in cluster.fedray("logs", RUN)[1], "goes on")
        said(f"attempt 2 goes on after round {stopped}")
    if isinstance(cluster.hosts, OwnHosts):
        with steps.step(f"a worker without network for {SHORT_S:.0f} s") as said:
            cluster.hosts.unplugged(WORKERS[1], SHORT_S)
            said(went_on(cluster))
    with steps.step("a worker is lost, `ray start` there again") as said:
        how = lost(cluster, WORKERS[1])
        cluster.hosts.kill(WORKERS[1])
        cluster.join(WORKERS[1])
        said(f"{how}; {went_on(cluster)}")
    with steps.step("kill -9 of all on the head, in mid-run") as said:
        gone = cluster.hosts.kill(HEAD)
        code, text = cluster.fedray("status", RUN)
        check(code == 3 and "no Ray dashboard" in text, f"status of a cluster that is gone: {code} {text}")
        said(f"{gone} processes; `fedray status` says so, exit code 3")
    with steps.step("the workers stopped, the cluster started again") as said:
        for name in WORKERS:
            cluster.hosts.kill(name)
        killed = last_checkpoint(shared)  # the driver actor, on a worker, may have outlived the head by a round
        cluster.start()
        said(f"the last checkpoint is of round {killed}")
    with steps.step("submitted there, to the end (`--wait`)") as said:
        text = must(cluster.submit(RUN, "--wait"), 0)
        check(f"goes on after round {killed}" in text, f"goes on after round {killed}")
        said(f"goes on after round {killed}; exit code 0")
    with steps.step("compared") as said:
        found = recorded(shared, RUN)
        different = [k for k in expected if found[k] != expected[k]]
        check(not different, f"the same bits; different: {different}")
        said(f"{len(found['rounds'])} rounds, test metrics, every user: the same bits")


def lost(cluster: Cluster, name: str) -> str:
    """A worker goes, as one can here: how."""
    if isinstance(cluster.hosts, OwnHosts):
        cluster.hosts.unplugged(name, LONG_S)
        return f"without network for {LONG_S:.0f} s"
    cluster.hosts.kill(name)
    return "kill -9"


def went_on(cluster: Cluster) -> str:
    """Twenty rounds from now."""
    here = cluster.status()["progress"]["round"]
    found = cluster.until_round(here + 20)["progress"]
    return f"round {here} -> {found['round']}, {found['restarts']} actors started again so far"


def must(done: tuple[int, str], code: int) -> str:
    """What a command printed, if it ended as it must."""
    check(done[0] == code, f"exit code {code}, not {done[0]}:\n{done[1]}")
    return done[1]


def check(fact: bool, what: str) -> None:
    """Or an error."""
    if not fact:
        raise RuntimeError(f"not so: {what}")


def last_checkpoint(shared: Path) -> int:
    """Its round, by what is there."""
    folders = (shared / "checkpoints" / RUN).glob("round-*/manifest.json")
    return max(int(f.parent.name.removeprefix("round-")) for f in folders)


def recorded(shared: Path, run: str) -> dict[str, Any]:
    """What the tracker has of a run, without times and names: rounds, in order; test metrics; users' as bytes."""
    (file,) = (shared / f"runs-{run}").glob("*.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    rounds = [line for line in lines if line["event"] == "round"]
    (end,) = [line for line in lines if line["event"] == "end" and line["status"] == "FINISHED"]
    return {
        "rounds": [{k: v for k, v in r.items() if k not in ("event", "seconds", "restarts", "time")} for r in rounds],
        "order": [r["round"] for r in rounds],
        "test": {k: v for k, v in end["metrics"].items() if not k.startswith("time/")},
        "users": {f.name.partition(".")[2]: f.read_bytes() for f in file.parent.glob("*.parquet")},
    }


if __name__ == "__main__":
    main(sys.argv[1:])
