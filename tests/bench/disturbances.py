"""What can go wrong beside deaths, one thing after the other, each in a process of its own, each with the same bits at
the end: `python -m tests.bench.disturbances [name]` prints a table; `make bench-chaos` runs it after the kills.

    lost requests   of what is asked of actors, and of what makes and ends them, one in ten is lost on its way,
                    or its answer
    a clock         the time of day jumps by a day back or forth, some forty times a second, in the entrypoint and every
                    actor
    an encoder, the MLflow server: killed in mid-run; the tests that say what has to come of it are run
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tests.bench import chaos

ROOT = Path(__file__).parents[2]
DAY_S = 86_400.0
PER_CENT = {"num_failures": -1, "req_failure_prob": 4, "resp_failure_prob": 4, "in_flight_failure_prob": 2}
LOST = (
    "CoreWorkerService.grpc_client.PushTask",
    "NodeManagerService.grpc_client.RequestWorkerLease",
    "NodeManagerService.grpc_client.ReturnWorkerLease",
    "NodeManagerService.grpc_client.PinObjectIDs",
    "ray::rpc::ActorInfoGcsService.grpc_client.RegisterActor",
    "ray::rpc::ActorInfoGcsService.grpc_client.CreateActor",
    "ray::rpc::ActorInfoGcsService.grpc_client.GetActorInfo",
    "ray::rpc::ActorInfoGcsService.grpc_client.KillActorViaGcs",
)
"""As Ray 2.60 names them (src/ray/rpc/rpc_chaos.h). With `*`, all there are, no run ended within minutes here."""


class Disturbance(NamedTuple):
    """A command to run, and the environment that makes its trouble."""

    title: str
    command: tuple[str, ...]
    env: Mapping[str, str] = {}


def _test(name: str) -> tuple[str, ...]:
    return ("-m", "pytest", "-q", "--no-header", name)


ALL = {
    "requests": Disturbance(
        "one in ten requests to actors lost, or its answer",
        ("-m", "tests.bench.disturbances", "run"),
        {"RAY_testing_rpc_failure": json.dumps(dict.fromkeys(LOST, PER_CENT))},
    ),
    "clock": Disturbance("a clock that jumps by a day", ("-m", "tests.bench.disturbances", "run", "clock")),
    "encoder": Disturbance(
        "kill -9 of an encoder actor",
        _test("tests/runtime/test_encoding.py::test_kill_9_of_an_actor_in_mid_run_loses_nothing_and_is_counted"),
    ),
    "mlflow": Disturbance(
        "kill -9 of the MLflow server",
        _test("tests/tracking/test_server_outage.py::test_killed_in_mid_run_then_back_and_later_dead_at_the_end"),
    ),
}


def main(args: list[str]) -> None:
    """All, some, or (`run [clock]`) the run itself in the environment that is there."""
    if args[:1] == ["run"]:
        print(run(jumping="clock" in args))
    elif not all_of_them(args):
        raise SystemExit(1)


def all_of_them(names: list[str] | None = None) -> bool:
    """Whether each ended well; a table."""
    rows, well = ["| disturbed by | s | |", "|---|---|---|"], True
    for name in names or ALL:
        title, command, env = ALL[name]
        begun = time.monotonic()
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, check=False
        )
        said = (done.stdout.strip().splitlines() or ["nothing said"])[-1].partition(" in ")[0]  # pytest's: not the time
        well = well and done.returncode == 0
        rows.append(
            f"| {title} | {time.monotonic() - begun:.0f} | {'' if done.returncode == 0 else 'FAILED: '}{said} |"
        )
        if done.returncode:
            print(done.stdout[-4000:], done.stderr[-4000:], sep="\n", file=sys.stderr, flush=True)
    print("\n".join(rows))
    return well


def run(jumping: bool) -> str:
    """The run of `tests.bench.chaos` without kills, beside one in this process that nothing disturbs."""
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    hook = {"worker_process_setup_hook": jumpy} if jumping else None
    with tempfile.TemporaryDirectory() as folder:
        expected = chaos.undisturbed(folder)
        with chaos.Nodes(runtime_env=hook) as nodes:
            before = chaos.objects(nodes)
            if jumping:
                jumpy()
            found, times, restarts = chaos.disturbed(folder, nodes, 0)
            left = chaos.leftovers(nodes, before)
    different = [k for k in expected if not chaos.equal(found[k], expected[k])]
    if different or left:
        raise SystemExit(f"different: {different}; left: {left}")
    return (
        f"the same bits; {restarts} actors started again; nothing left; a round {max(times['(a round)']):.1f} s at most"
    )


def jumpy() -> None:
    """From now on this process's clock is right only now and then."""
    right, since = time.time, time.monotonic

    def now() -> float:
        return right() + DAY_S * random.Random(int(since() * 40)).choice([-1, 0, 1])

    time.time = now


if __name__ == "__main__":
    main(sys.argv[1:])
