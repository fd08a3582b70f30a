"""`titokctl runs` and `titokctl report`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from titokctl.cli import completion, console
from titokctl.cli.app import app
from titokctl.cli.options import DryRun, Json, Overwrite, Quiet, RunsDir, option
from titokctl.cli.work import Surroundings, perform
from titokctl.readable import readable

_SHOWN = 12  # items of a list
Run = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's folder, kind/name, or name.", autocompletion=completion.runs)
]


group = typer.Typer(no_args_is_help=True, help="List and show the runs of the runs folder.")
app.add_typer(group, name="runs")


@group.command(epilog="Example: titokctl runs ls")
def ls(runs_dir: RunsDir = None, as_json: Json = False) -> None:
    """List all runs of the runs folder by kind: newest finished first, unfinished last."""
    from titokctl.formats.run_folder import runs_root
    from titokctl.jobs.machine.runs import ListRuns

    found = perform(ListRuns(), Surroundings(quiet=True, runs_dir=runs_dir))
    if as_json:
        console.emit_json(found)
        return
    if not found:
        console.say(f"no runs in {runs_root(runs_dir)}")
        return
    rows = [(run.kind, run.name, run.status, "-" if run.step is None else f"{run.step:,}", run.created[:16],
             (run.finished or "-")[:16]) for run in found]  # fmt: skip
    console.table("", ("kind", "name", "status", "steps", "begun (UTC)", "finished (UTC)"), rows)


@group.command(epilog="Example: titokctl runs show tiny-1")
def show(run: Run, runs_dir: RunsDir = None, as_json: Json = False) -> None:
    """Show a run: its record, newest metrics, settings, and lineage."""
    from titokctl.config.differences import flatten
    from titokctl.jobs.machine.runs import ShowRun

    found = perform(ShowRun(run), Surroundings(quiet=True, runs_dir=runs_dir))
    if as_json:
        console.emit_json(found)
        return
    record = {name: value for name, value in found.record.items() if name != "settings" and value}
    console.pairs(f"{found.path}: {found.kind} run", _shortened(record))
    console.table("lineage", ("product", "path", "sha256"),
                  [(link.what, link.where, link.sha256[:12]) for link in found.lineage])  # fmt: skip
    if found.metrics:
        console.pairs("newest metrics", _shortened(found.metrics))
    console.pairs("settings", _shortened(flatten(found.record["settings"])))


@app.command(epilog="Example: titokctl report generator/tiny-1 -o report.html")
def report(
    run: Run,
    output: Annotated[Path | None, option("-o --output", "The page; default: report.html in the run.", "FILE")] = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    runs_dir: RunsDir = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write a self-contained page about a run: metrics, curves, pictures, scores, settings, lineage."""
    from titokctl.jobs.machine.report import Report

    around = Surroundings(quiet, as_json, dry_run, runs_dir)
    console.result(perform(Report(run, output, overwrite), around), as_json, "report")


def _shortened(values: dict[str, Any]) -> dict[str, Any]:
    return {name: readable(value, commas=False, shown=_SHOWN) for name, value in values.items()}
