"""`titokctl runs` and `titokctl report`: what was made here."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from titokctl.cli import completion, console
from titokctl.cli.options import Json, Overwrite, RunsDir

_LISTED = 12  # items of a list that are shown
Run = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's folder, kind/name, or name.", autocompletion=completion.runs)
]


def register(app: typer.Typer) -> None:
    """Add the group of commands, and `report`."""
    group = typer.Typer(no_args_is_help=True, help="What was trained and sampled here.")
    group.command("ls", epilog="Example: titokctl runs ls")(ls)
    group.command("show", epilog="Example: titokctl runs show tiny-1")(show)
    app.add_typer(group, name="runs")
    app.command("report", epilog="Example: titokctl report generator/tiny-1 -o report.html")(report)


def ls(runs_dir: RunsDir = None, as_json: Json = False) -> None:
    """List all runs of the runs folder, the newest of each kind first."""
    from dataclasses import asdict

    from titokctl.formats.run_folder import runs_root
    from titokctl.jobs.runs import list_runs

    found = list_runs(runs_root(runs_dir))
    if as_json:
        console.emit_json([asdict(run) for run in found])
        return
    rows = [(run.kind, run.name, run.status, "-" if run.step is None else f"{run.step:,}", run.created[:16])
            for run in found]  # fmt: skip
    console.table("", ("kind", "name", "status", "steps", "begun (UTC)"), rows, "" if rows else "no runs yet")


def show(run: Run, runs_dir: RunsDir = None, as_json: Json = False) -> None:
    """Say what a run is: settings, newest numbers, and where it came from."""
    from dataclasses import asdict

    from titokctl.config.recipe_files import flatten
    from titokctl.formats.run_folder import runs_root
    from titokctl.jobs.runs import show_run

    found = show_run(run, runs_root(runs_dir))
    if as_json:
        console.emit_json(asdict(found))
        return
    record = {name: value for name, value in found.record.items() if name != "settings" and value}
    console.pairs(f"{found.path}: {found.kind} run", {name: _readable(value) for name, value in record.items()})
    console.table("where it came from", ("what", "where", "sha256"),
                  [(link.what, link.where, link.sha256[:12]) for link in found.lineage])  # fmt: skip
    if found.metrics:
        console.pairs("newest numbers", {name: _readable(value) for name, value in found.metrics.items()})
    console.pairs("settings", {name: _readable(value) for name, value in flatten(found.record["settings"]).items()})


def report(
    run: Run,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="The page; report.html in the run by default.")
    ] = None,
    overwrite: Overwrite = False,
    runs_dir: RunsDir = None,
    as_json: Json = False,
) -> None:
    """Write one self-contained page about a run: numbers, curves, pictures, scores, settings, and its origins."""
    from titokctl.formats.run_folder import runs_root
    from titokctl.jobs.report import write_report

    console.result(write_report(run, output, runs_root(runs_dir), overwrite), as_json, "report")


def _readable(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, list) and len(value) > _LISTED:
        return f"{json.dumps(value[:_LISTED], ensure_ascii=False)[:-1]}, ...] ({len(value):,})"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
