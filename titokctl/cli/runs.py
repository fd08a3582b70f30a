"""`titokctl runs` and `titokctl report`: what was made here."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from titokctl.cli import completion, console
from titokctl.cli.app import app
from titokctl.cli.options import DryRun, Json, Overwrite, Quiet, RunsDir, option
from titokctl.cli.work import alone

_LISTED = 12  # items of a list that are shown
Run = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's folder, kind/name, or name.", autocompletion=completion.runs)
]


group = typer.Typer(no_args_is_help=True, help="What was trained and sampled here.")
app.add_typer(group, name="runs")


@group.command(epilog="Example: titokctl runs ls")
def ls(runs_dir: RunsDir = None, as_json: Json = False) -> None:
    """List all runs of the runs folder: of each kind the one that finished last first, unfinished ones at the end."""
    from titokctl.formats.run_folder import runs_root
    from titokctl.jobs.machine.runs import list_runs

    root = runs_root(runs_dir)
    found = list_runs(root)
    if as_json:
        console.emit_json(found)
        return
    if not found:
        console.say(f"no runs in {root}")
        return
    rows = [(run.kind, run.name, run.status, "-" if run.step is None else f"{run.step:,}", run.created[:16],
             (run.finished or "-")[:16]) for run in found]  # fmt: skip
    console.table("", ("kind", "name", "status", "steps", "begun (UTC)", "finished (UTC)"), rows)


@group.command(epilog="Example: titokctl runs show tiny-1")
def show(run: Run, runs_dir: RunsDir = None, as_json: Json = False) -> None:
    """Say what a run is: settings, newest numbers, and where it came from."""
    from titokctl.config.differences import flatten
    from titokctl.formats.run_folder import runs_root
    from titokctl.jobs.machine.runs import show_run

    found = show_run(run, runs_root(runs_dir))
    if as_json:
        console.emit_json(found)
        return
    record = {name: value for name, value in found.record.items() if name != "settings" and value}
    console.pairs(f"{found.path}: {found.kind} run", {name: _readable(value) for name, value in record.items()})
    console.table("where it came from", ("what", "where", "sha256"),
                  [(link.what, link.where, link.sha256[:12]) for link in found.lineage])  # fmt: skip
    if found.metrics:
        console.pairs("newest numbers", {name: _readable(value) for name, value in found.metrics.items()})
    console.pairs("settings", {name: _readable(value) for name, value in flatten(found.record["settings"]).items()})


@app.command(epilog="Example: titokctl report generator/tiny-1 -o report.html")
def report(
    run: Run,
    output: Annotated[
        Path | None, option("-o --output", "The page; report.html in the run by default.", "FILE")
    ] = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    runs_dir: RunsDir = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write one self-contained page about a run: numbers, curves, pictures, scores, settings, and its origins."""
    from titokctl.formats.run_folder import runs_root
    from titokctl.jobs.machine.report import write_report

    with alone(quiet, dry_run, as_json):
        result = write_report(run, output, runs_root(runs_dir), overwrite)
    console.result(result, as_json, "report")


def _readable(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, list) and len(value) > _LISTED:
        return f"{json.dumps(value[:_LISTED], ensure_ascii=False)[:-1]}, ...] ({len(value):,})"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
