"""The command line. Exit codes: 0 done, 1 the run failed, 2 wrong usage or configuration or data, 3 cluster or
memory, 75 broken off and to be resumed (--resume-or-start), 130 interrupted."""

import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from fedray.errors import ConfigError, FedrayError, Terminated

app = typer.Typer(
    name="fedray",
    help="Federated multimodal recommendation on Ray, tracked in MLflow.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Job = Annotated[Path, typer.Argument(help="job file, e.g. jobs/quickstart.yaml")]
Sets = Annotated[list[str] | None, typer.Option("--set", "-s", help="lay a.b=value over the file; repeatable")]
Address = Annotated[
    str, typer.Option("--address", "-a", help="of the dashboard, http://HOST:8265; empty: the environment's")
]
Local = Annotated[bool, typer.Option("--local", help="a job on this machine, without a cluster")]
Run = Annotated[str, typer.Argument(help="run id (its last attempt), or submission id")]
AsJson = Annotated[bool, typer.Option("--json", help="for scripts")]

MOST_SEEDS = 1000


@app.command()
def train(
    job: Job,
    set_: Sets = None,
    seeds: Annotated[str, typer.Option(help="a family under one parent run: 0..4 or 0,3,7")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the plan and start nothing")] = False,
    summary: Annotated[Path | None, typer.Option(help="write the end of the run as JSON")] = None,
    save: Annotated[Path | None, typer.Option(help="keep the selected model in this folder")] = None,
    run_id: Annotated[str, typer.Option(help="a name to go on with the run by, should it break off")] = "",
    resume: Annotated[
        bool, typer.Option("--resume-or-start", help="go on from the last checkpoint of --run-id, if there is one")
    ] = False,
) -> None:
    """Train a federation."""
    from fedray import job as jobs
    from fedray import outputs
    from fedray.config import load_config
    from fedray.family import train_family
    from fedray.runtime.checkpoint import Go

    config, console = load_config(job, set_), _console()
    outputs.check_outputs(summary, save)
    go = Go(checked_run_id(run_id, resume), resume)
    if dry_run:
        jobs.dry_run(config, console)
        return
    if seeds:
        if save is not None:
            raise ConfigError("--save with --seeds", "one of them", "Save a run of one seed.")
        family = train_family(config, parse_seeds(seeds), console, go)
        end: tuple[Any, Any] = (family.summary, family.users)
    else:
        result = jobs.train(config, console, save=save, go=go)
        end = (result.summary(), {None: result.outcome.users})
    if summary is not None:
        outputs.write_end(summary, *end)


@app.command()
def tune(
    sweep: Annotated[Path, typer.Argument(help="sweep file, e.g. tune_configs/quickstart.yaml")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="lay a.b=value over the sweep (budget.trials=8) or its job; repeatable"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="check everything, print the trials that are known")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="write the best settings as a job file")] = None,
    summary: Annotated[Path | None, typer.Option(help="write the end of the sweep as JSON")] = None,
    run_id: Annotated[str, typer.Option(help="a name to go on with the sweep by, should it break off")] = "",
    resume: Annotated[
        bool, typer.Option("--resume-or-start", help="go on with the sweep of --run-id, if there is one")
    ] = False,
) -> None:
    """Search settings on validation; the best ones come out as a job."""
    from fedray import outputs
    from fedray.runtime.checkpoint import Go
    from fedray.search.sweep import load_sweep

    found, console = load_sweep(sweep, set_ or []), _console()
    outputs.check_outputs(summary, None)
    outputs.check_outputs(out, None)
    go = Go(checked_run_id(run_id, resume), resume)
    if dry_run:
        from fedray.search.report import listed

        typer.echo(listed(found), nl=False)
        return
    from fedray.search.tune import tune_whole

    end = tune_whole(found, console, go, out)
    if summary is not None:
        outputs.write_summary(summary, end)


@app.command()
def encode(
    job: Job,
    set_: Sets = None,
    verify: Annotated[bool, typer.Option("--verify", help="only check every row of the store")] = False,
    gc: Annotated[bool, typer.Option("--gc", help="only drop embeddings that no catalogue uses")] = False,
    older_than: Annotated[float, typer.Option(help="--gc: days after which a catalogue's use is forgotten")] = 30.0,
    summary: Annotated[Path | None, typer.Option(help="write the report as JSON")] = None,
) -> None:
    """Turn the items' images and texts into embeddings, into the store that training reads."""
    from fedray import encode as encoding
    from fedray import outputs
    from fedray.config import load_config

    config, console = load_config(job, set_), _console()
    outputs.check_outputs(summary, None)
    if verify and gc:
        raise ConfigError("--verify with --gc", "one of them", "Collect first, then verify.")
    if verify:
        raise typer.Exit(0 if encoding.verify(config, console) else 1)
    found = encoding.gc(config, console, older_than) if gc else encoding.encode(config, console)
    if summary is not None:
        outputs.write_summary(summary, found)


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="folder that `fedray train --save` wrote")],
    set_: Sets = None,
    split: Annotated[Literal["test", "valid"], typer.Option()] = "test",
    summary: Annotated[Path | None, typer.Option(help="write the metrics as JSON")] = None,
) -> None:
    """Score a saved federation beside its controls."""
    from fedray import outputs
    from fedray.evaluate import evaluate_model

    found = evaluate_model(model, set_ or [], split, _console())
    if summary is not None:
        outputs.write_summary(summary, found)


@app.command()
def compare(
    what: Annotated[
        list[str], typer.Argument(help="runs or families (id, start of an id, name), --summary files, or an experiment")
    ],
    baseline: Annotated[str, typer.Option(help="the row to test against: its name, or a run's; the first row")] = "",
    metric: Annotated[list[str] | None, typer.Option(help="e.g. ndcg_at_10; repeatable")] = None,
    format_: Annotated[Literal["markdown", "csv"], typer.Option("--format")] = "markdown",
    out: Annotated[Path | None, typer.Option(help="write the table to this file")] = None,
    report: Annotated[
        Path | None, typer.Option(help="also write a page with curves, costs and settings: one HTML file")
    ] = None,
    tracking: Annotated[str, typer.Option(help="tracking URI; empty: that of a job that names none")] = "",
    across_protocols: Annotated[
        bool, typer.Option("--across-protocols", help="allow different data and protocols, without tests")
    ] = False,
    controls: Annotated[
        bool, typer.Option("--controls", help="random, popularity, EASE and local-only as rows")
    ] = False,
) -> None:
    """Put runs beside each other over their seeds, tested over users against a baseline."""
    from fedray.compare import compare as compared
    from fedray.compare import render
    from fedray.config import TrackingConfig
    from fedray.outputs import write_aside

    uri = tracking or TrackingConfig().uri
    found = compared(what, uri, baseline, metric or [], across_protocols, controls)
    text = render(found, format_)
    for remark in found.remarks:
        typer.secho(remark, err=True, fg="yellow")
    if out is None:
        typer.echo(text, nl=False)
    else:
        write_aside(out, text.encode())
    if report is not None:
        from fedray.report import comparison_report

        write_aside(report, comparison_report(found, uri, f"Compared: {', '.join(what)}").encode())


@app.command()
def ui(
    uri: Annotated[str, typer.Option(help="tracking URI; empty: that of a job that names none")] = "",
    host: Annotated[str, typer.Option(help="address to listen on; others than this machine's own are open to all")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: the first free one from 5000 on")] = 0,
) -> None:
    """Open MLflow's pages over the runs; Ctrl-C ends it."""
    from fedray.config import TrackingConfig
    from fedray.ui import ui as served

    served(uri or TrackingConfig().uri, host, port, _console())


@app.command("show-config")
def show_config(job: Job, set_: Sets = None) -> None:
    """Print the resolved configuration; it alone reproduces the run."""
    from fedray.config import load_config, to_yaml

    config = load_config(job, set_)
    typer.echo(f"# fingerprint {config.fingerprint()}\n{to_yaml(config)}", nl=False)


@app.command()
def doctor() -> None:
    """What is there, what is missing, and what to do."""
    from fedray.doctor import report

    if not report(_console()):
        raise typer.Exit(1)


@app.command()
def sync(
    uri: Annotated[str, typer.Option(help="tracking URI")] = "sqlite:///mlflow.db",
    spool: Annotated[Path, typer.Option(help="where points wait")] = Path(".fedray/spool"),
) -> None:
    """Send points that a run could not deliver because its tracking server was away."""
    from fedray.tracking.replay import replay

    typer.echo(f"{replay(spool, uri)} records sent to {uri}")


@app.command()
def submit(
    job: Job,
    address: Address = "",
    local: Local = False,
    run_id: Annotated[str, typer.Option(help="go on with this run; empty: a new one, <name>-<8 hex>")] = "",
    set_: Sets = None,
    seeds: Annotated[str, typer.Option(help="a family under one parent run: 0..4 or 0,3,7")] = "",
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="follow the log and exit as the job does")] = False,
    working_dir: Annotated[
        Path | None, typer.Option(help="folder to run in, sent along; hidden files and linked folders stay behind")
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(help="NAME or NAME=VALUE for the job; whoever may use the cluster can read it; repeatable"),
    ] = None,
    ship: Annotated[bool, typer.Option("--ship", help="send this fedray too, for clusters with another one")] = False,
) -> None:
    """Start a training or a sweep as a job, or go on with it; prints the run id."""
    from fedray.submit import Place, Submission
    from fedray.submit import submit as submitted

    if seeds:
        parse_seeds(seeds)
    asked = Submission(job, set_ or [], seeds, run_id, working_dir, env or [], ship)
    raise typer.Exit(submitted(asked, Place(address, local), wait))


@app.command()
def status(run: Run, address: Address = "", local: Local = False, json_: AsJson = False) -> None:
    """Where a job is; exit code 0 while it is well, 1 failed, 75 resumable, 130 stopped."""
    from fedray import submit as jobs

    raise typer.Exit(jobs.status(run, jobs.Place(address, local), json_))


@app.command()
def logs(
    run: Run,
    address: Address = "",
    local: Local = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="until the job ends, and exit as it does")] = False,
) -> None:
    """What a job printed."""
    from fedray import submit as jobs

    raise typer.Exit(jobs.logs(run, jobs.Place(address, local), follow))


@app.command()
def stop(
    run: Run,
    address: Address = "",
    local: Local = False,
    wait: Annotated[bool, typer.Option("--wait", help="until it has ended")] = False,
) -> None:
    """Ask a job to commit and end; submitting its run again goes on with it."""
    from fedray import submit as jobs

    raise typer.Exit(jobs.stop(run, jobs.Place(address, local), wait))


@app.command("list")
def list_(address: Address = "", local: Local = False, json_: AsJson = False) -> None:
    """Every job, the newest first."""
    from fedray import submit as jobs

    raise typer.Exit(jobs.list_jobs(jobs.Place(address, local), json_))


def parse_seeds(text: str) -> list[int]:
    """`0..4` or `0,3,7`."""
    try:
        if ".." in text:
            first, last = (int(x) for x in text.split(".."))
            found = list(range(first, last + 1)) if last - first < MOST_SEEDS else []
        else:
            found = [int(x) for x in text.split(",")]
    except ValueError:
        found = []
    if not found or not 0 <= min(found) <= max(found) < 2**63 or len(set(found)) < len(found):
        raise ConfigError(f"--seeds {text!r}", "0..4 or 0,3,7: distinct, not negative, at most 1,000 of them")
    return found


def checked_run_id(run_id: str, resume: bool) -> str:
    """A run id that can be the name of a folder."""
    if resume and not run_id:
        raise ConfigError("--resume-or-start alone", "--run-id with it", "It is printed where a run breaks off.")
    if run_id and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", run_id):
        raise ConfigError(f"--run-id {run_id!r}", "letters, digits and . _ - (at most 128), no sign first")
    return run_id


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 120)


def run(args: list[str] | None = None) -> int:
    """Run the command line; the exit code where one of fedray's own errors ended it, said in one line.

    Everything else leaves by SystemExit: the end of a command with 0, wrong usage with 2.
    """
    try:
        app(args, standalone_mode=True)
    except FedrayError as error:
        typer.secho(f"{type(error).__name__}: {error}", err=True, fg="red")
        return error.exit_code
    except Terminated:
        typer.secho("interrupted: actors stopped, run closed", err=True)
        return 130
    return 0


def main() -> None:
    """The console script."""
    sys.exit(run())


if __name__ == "__main__":
    main()
