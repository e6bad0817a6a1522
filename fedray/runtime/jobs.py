"""Jobs on a Ray cluster, through the job API of its dashboard: submit, look, follow, stop.

Every failure is one of fedray's named errors, within seconds where nobody answers; no message holds a token.
"""

import asyncio
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from aiohttp import ClientError
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from fedray.errors import ClusterAuthError, ClusterError, JobError, JobRunningError, NotShippableError
from fedray.runtime.address import reachable
from fedray.runtime.job_records import RESUMABLE, STOPPED, JobRecord, Request, State, state_of
from fedray.tracking.redact import redact

FIRST_ANSWER_S, ANSWER_S = 10.0, 60.0
FOLLOW_AGAIN, POLL_S = 5, 1.0
DOLLAR = "FEDRAY_DOLLAR"
ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
WANTED = "the dashboard's address, http://HOST:8265"
PORTS = {"http": 80, "https": 443}


def cluster_address(given: str, here: Mapping[str, str]) -> str:
    """The dashboard's address: as given, else of the environment; refused where it is another kind of address."""
    name, address = next(
        ((n, a) for n, a in [("--address", given), *((n, here.get(n, "")) for n in ADDRESSES)] if a), ("", "")
    )
    if not address:
        raise JobError(
            "no cluster", f"--address with {WANTED}, or --local", f"{' or '.join(ADDRESSES)} is read where it is set."
        )
    parts = urlsplit(address)
    if parts.scheme not in PORTS or not parts.hostname:
        host = (parts.hostname if parts.scheme == "ray" else address.partition(":")[0]) or "HOST"
        guess = f"Try --address http://{'HOST' if host in ('auto', 'local') else host}:8265."
        raise JobError(f"{name} {redact(address)!r} is no address of a dashboard", WANTED, guess)
    return address.rstrip("/")


def literal(env: Mapping[str, str]) -> dict[str, str]:
    """Variables that reach a job as they are. Ray sets them in order and replaces `$NAME` on the way, so every $ in
    them becomes a variable that is one. What it does to `${NAME}` cannot be undone."""
    if odd := [name for name, value in env.items() if "${" in value]:
        raise NotShippableError(
            f"{', '.join(odd)} with ${{...}} in it, which Ray would cut out", "another value", "Set it on the cluster."
        )
    dollars = any("$" in value for value in env.values())
    first = {DOLLAR: "$"} if dollars else {}
    return first | {name: value.replace("$", f"${{{DOLLAR}}}") for name, value in env.items()}


class _Client(JobSubmissionClient):
    """Ray's client with a time limit on every request; its own has none."""

    limit_s = FIRST_ANSWER_S

    def _do_request(self, method: str, endpoint: str, **more: Any) -> Any:
        return super()._do_request(method, endpoint, **{"timeout": self.limit_s, **more})


class RayJobs:
    """The jobs of the cluster whose dashboard is at `address`."""

    def __init__(self, address: str) -> None:
        self.address = redact(address)
        self.where = f"on {self.address}"
        parts = urlsplit(address)
        if not reachable(f"{parts.hostname}:{parts.port or PORTS[parts.scheme]}"):
            raise _unreachable(self.address, "nobody answers")
        with _answering(self.address), _alone(address):
            self._client = _Client(address)
        self._client.limit_s = ANSWER_S

    def jobs(self) -> list[JobRecord]:
        """Every submitted job."""
        with _answering(self.address):
            return [_record(d) for d in self._client.list_jobs() if d.submission_id]

    def job(self, submission_id: str) -> JobRecord:
        """One job as it is now."""
        with _answering(self.address):
            return _record(self._client.get_job_info(submission_id))

    def submit(self, request: Request) -> None:
        """Send the folder, start the command."""
        env: dict[str, Any] = {"working_dir": str(request.folder), "env_vars": literal(request.env)}
        if request.modules:
            env["py_modules"] = [str(m) for m in request.modules]
        with _answering(self.address, request.submission_id):
            self._client.submit_job(
                entrypoint=shlex.join(["python", *request.command]),
                runtime_env=env,
                submission_id=request.submission_id,
            )

    def log(self, submission_id: str) -> str:
        """All it has printed so far."""
        with _answering(self.address):
            return str(self._client.get_job_logs(submission_id))

    def follow(self, submission_id: str, emit: Callable[[str], None]) -> None:
        """All it has printed and will print; where the connection breaks, again from where it broke."""
        seen, tries = _Seen(emit), FOLLOW_AGAIN
        while True:
            before = seen.done
            try:
                if self.job(submission_id).over:
                    break
                with _answering(self.address):
                    asyncio.run(self._tail(submission_id, seen))
            except ClusterAuthError:
                raise
            except ClusterError:
                tries = FOLLOW_AGAIN if seen.done > before else tries - 1
                if not tries:
                    raise
            time.sleep(POLL_S)
        seen.all(self.log(submission_id))

    async def _tail(self, submission_id: str, seen: "_Seen") -> None:
        seen.again()
        async for text in self._client.tail_job_logs(submission_id):
            seen(text)

    def stop(self, submission_id: str) -> bool:
        """Ask it to end; the grace is in its environment (`RAY_JOB_STOP_WAIT_TIME_S`)."""
        with _answering(self.address):
            return bool(self._client.stop_job(submission_id))


class _Seen:
    """Passes on what has not been passed on yet, of texts that all begin at the start of the log."""

    def __init__(self, emit: Callable[[str], None]) -> None:
        self._emit, self.done, self._at = emit, 0, 0

    def again(self) -> None:
        """From the start of the log."""
        self._at = 0

    def __call__(self, text: str) -> None:
        fresh = text[max(0, self.done - self._at) :]
        self._at += len(text)
        self.done = max(self.done, self._at)
        if fresh:
            self._emit(fresh)

    def all(self, log: str) -> None:
        """The whole log."""
        self.again()
        self(log)


def _record(details: Any) -> JobRecord:
    begun, ended = (t / 1000 if t else None for t in (details.start_time, details.end_time))
    text = _first_line(details.message)
    return JobRecord(details.submission_id, _state(details), details.driver_exit_code, begun, ended, text)


def _state(details: Any) -> State:
    """Ray's own word, but for a failure: its exit code may say that the run can go on, as does a lost node."""
    if details.status == "FAILED" and details.driver_exit_code in (RESUMABLE, STOPPED):
        return state_of(details.driver_exit_code)
    if details.error_type == "JOB_SUPERVISOR_ACTOR_DIED":
        return "resumable"
    return details.status.lower()


def _first_line(text: str | None) -> str:
    return next(iter((text or "").splitlines()), "")[:300]


@contextmanager
def _alone(address: str) -> Iterator[None]:
    """Ray lets the environment win over the address that it is given; here the address wins."""
    before = os.environ.get(ADDRESSES[0])
    os.environ[ADDRESSES[0]] = address
    try:
        yield
    finally:
        if before is None:
            del os.environ[ADDRESSES[0]]
        else:
            os.environ[ADDRESSES[0]] = before


@contextmanager
def _answering(address: str, submission_id: str = "") -> Iterator[None]:
    """What Ray's client raises becomes a named error. `from None`: a cause's text may be long, or hold a header."""
    try:
        yield
    except AuthenticationError:
        raise ClusterAuthError(
            f"{address} does not let you in",
            "the cluster's token",
            "Set RAY_AUTH_MODE=token, and the token in RAY_AUTH_TOKEN or a file of it in RAY_AUTH_TOKEN_PATH.",
        ) from None
    except RuntimeError as error:
        if submission_id and "already exists" in str(error):
            raise JobRunningError(f"{submission_id} was submitted just now by somebody else", "one at a time") from None
        raise _refused(address, error) from None
    except ValueError as error:  # not JSON: no dashboard; or a folder over Ray's own limit
        raise _refused(address, error) from None
    except (OSError, KeyError, ClientError) as error:  # requests' errors are OSErrors
        raise _unreachable(address, type(error).__name__) from None


def _refused(address: str, error: Exception) -> ClusterError:
    found = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
    no_agent = "No available agent" in found
    mend = "Is its port taken? `ray start --dashboard-agent-listen-port` gives it another." if no_agent else ""
    return ClusterError(f"{address} refuses: {found.strip()[:300]}", f"a job API that answers at {WANTED}", mend)


def _unreachable(address: str, found: str) -> ClusterError:
    return ClusterError(
        f"no Ray dashboard at {address}: {found}",
        WANTED,
        "Start the cluster with `ray start --head`, forward the port, or correct the address; `--local` needs none.",
    )
