"""`titokctl runs` and `titokctl report`."""

import csv
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from titokctl.cli import completion, console
from titokctl.cli.app import app
from titokctl.cli.options import DryRun, Json, Overwrite, Quiet, RunsDir, option
from titokctl.cli.work import Surroundings, context, perform
from titokctl.errors import UsageError
from titokctl.readable import counted, readable, size

if TYPE_CHECKING:
    from titokctl.jobs.machine.removal import Prune, RemoveRun
    from titokctl.jobs.machine.runs import ListedRun

_SHOWN = 12  # items of a list
Run = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's folder, kind/name, or name.", autocompletion=completion.runs)
]


group = typer.Typer(help="List, compare, show, finish and remove runs of the runs folder; alone, list them.")
app.add_typer(group, name="runs")
By = Annotated[
    str | None, option("--sort", "Order by size, step, a score or a setting; -NAME: from large to small.", "NAME")
]
Csv = Annotated[bool, option("--csv", "Print CSV, with a column for each score and setting.")]


@group.callback(invoke_without_command=True)
def _alone(
    called: typer.Context, sort: By = None, as_csv: Csv = False, runs_dir: RunsDir = None, as_json: Json = False
) -> None:
    command = called.invoked_subcommand
    if command is None:
        ls(sort, as_csv, runs_dir, as_json)
        return
    given = {"--sort": sort is not None, "--csv": as_csv, "--json": as_json}
    if runs_dir is not None and called.get_parameter_source("runs_dir").name == "COMMANDLINE":  # type: ignore[union-attr]
        given["--runs-dir"] = True
    if wrong := [name for name, is_given in given.items() if is_given]:
        raise UsageError(
            f"{wrong[0]} before {command} has no effect", f"options follow the command: runs {command} ..."
        )


@group.command(epilog="Example: titokctl runs ls")
def ls(sort: By = None, as_csv: Csv = False, runs_dir: RunsDir = None, as_json: Json = False) -> None:
    """List all runs of the runs folder by kind: newest finished first, unfinished last.

    Of the settings, those are shown that differ between the runs of a kind. Times are UTC.
    """
    from titokctl.formats.run_folder import runs_root
    from titokctl.jobs.machine.runs import ListRuns

    found = perform(ListRuns(sort), Surroundings(quiet=True, runs_dir=runs_dir))
    if as_json:
        console.emit_json(found)
        return
    if as_csv:
        _print_csv(found)
        return
    if not found:
        console.say(f"no runs in {runs_root(runs_dir)}")
        return
    rows = [
        (
            f"{run.kind}/{run.name}",
            run.status,
            "-" if run.step is None else f"{run.step:,}",
            (run.finished or run.created or "-")[:10],
            "-" if run.num_bytes is None else size(run.num_bytes),
        )
        for run in found
    ]
    columns = ("name", "status", "steps", "when", "size")
    console.table("", columns, rows, whole=columns)
    details = [(row[0], _in_words(run.scores), _in_words(run.settings)) for row, run in zip(rows, found, strict=True)]
    if told := [row for row in details if row[1] or row[2]]:
        console.table("", ("name", "scores", "differing settings"), told, whole=("name",))


def _in_words(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {readable(value, commas=False)}" for name, value in values.items())


def _print_csv(runs: "list[ListedRun]") -> None:
    fields = ("kind", "name", "status", "step", "created", "finished", "num_bytes")
    more = sorted({name for run in runs for name in (*run.scores, *run.settings)})
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([*fields, *more])
    for run in runs:
        own = run.scores | run.settings
        writer.writerow([*(getattr(run, name) for name in fields), *(own.get(name) for name in more)])


@group.command(epilog="Example: titokctl runs diff tiny-1 tiny-2")
def diff(
    first: Run,
    second: Annotated[str, typer.Argument(metavar="RUN", help="Another one.", autocompletion=completion.runs)],
    runs_dir: RunsDir = None,
    as_json: Json = False,
) -> None:
    """Print what differs between two runs: settings, inputs, versions, scores."""
    from titokctl.jobs.machine.runs import DiffRuns

    found = perform(DiffRuns(first, second), Surroundings(quiet=True, runs_dir=runs_dir))
    if as_json:
        console.emit_json([asdict(one) for one in found])
    elif not found:
        console.say("the runs record the same settings, inputs, versions and scores")
    else:
        rows = [
            (d.field, *(readable(value, commas=False, shown=_SHOWN) for value in (d.first, d.second))) for d in found
        ]
        console.table("", ("field", first, second), rows)


@group.command(epilog="Example: titokctl runs show tiny-1")
def show(run: Run, runs_dir: RunsDir = None, as_json: Json = False) -> None:
    """Show a run: its record, newest metrics, settings, and lineage."""
    from titokctl.config.differences import flatten
    from titokctl.jobs.machine.runs import ShowRun

    found = perform(ShowRun(run), Surroundings(quiet=True, runs_dir=runs_dir))
    if as_json:
        console.emit_json(found)
        return
    record = {name: value for name, value in found.record.items() if name not in ("settings", "launches") and value}
    console.pairs(f"{found.path}: {found.kind} run", _shortened(record))
    for launch in found.record["launches"][-1:]:
        words = {"command": shlex.join(map(str, launch.get("command", ())))}
        console.pairs(f"latest of {counted(len(found.record['launches']), 'launches')}", _shortened(launch) | words)
    console.table("lineage", ("product", "path", "sha256"),
                  [(link.what, link.where, link.sha256[:12]) for link in found.lineage])  # fmt: skip
    if found.metrics:
        console.pairs("newest metrics", _shortened(found.metrics))
    console.pairs("settings", _shortened(flatten(found.record["settings"])))


@group.command(epilog="Example: titokctl runs finish tokenizer/tiny-1@600")
def finish(
    run: Annotated[str, typer.Argument(metavar="RUN[@STEP]", autocompletion=completion.runs)],
    runs_dir: RunsDir = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """End a stopped training run: the averaged weights of its newest checkpoint, or of STEP, become its product."""
    from titokctl.jobs.train.finish import FinishRun

    found = perform(FinishRun(run), Surroundings(quiet, as_json, runs_dir=runs_dir))
    console.result(found, as_json, "finished run")
    console.next_after_run(found.run.parent.name, found.run, shown=not quiet, runs_dir=runs_dir)


@group.command(epilog="Example: titokctl runs rm generator/tiny-1 --dry-run")
def rm(
    run: Annotated[str, typer.Argument(metavar="RUN[@HASH]", autocompletion=completion.runs)],
    dry_run: DryRun = False,
    runs_dir: RunsDir = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Remove a run, or one of its earlier products, that no other run refers to.

    Token caches are not in the runs folder, so their references are not checked.
    """
    from titokctl.jobs.machine.removal import RemoveRun

    _remove(RemoveRun(run), dry_run, Surroundings(quiet, as_json, runs_dir=runs_dir))


@group.command(epilog="Example: titokctl runs prune --dry-run")
def prune(
    unfinished: Annotated[
        bool, option("--unfinished", "Also remove stopped and failed runs without a product.")
    ] = False,
    dry_run: DryRun = False,
    runs_dir: RunsDir = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Remove the earlier products of all runs that no other run refers to.

    Token caches are not in the runs folder, so their references are not checked.
    """
    from titokctl.jobs.machine.removal import Prune

    _remove(Prune(unfinished), dry_run, Surroundings(quiet, as_json, runs_dir=runs_dir))


def _remove(job: "RemoveRun | Prune", dry_run: bool, around: Surroundings) -> None:
    """Remove, or with `dry_run` only find, what the job names; show it and the bytes that it frees."""
    with context(around) as found:
        removed = job.plan(found) if dry_run else job.run(found)
    freed = sum(one.num_bytes for one in removed)
    if around.as_json:
        console.emit_json({"removed": removed, "freed_bytes": freed, "dry_run": dry_run})
        return
    if not removed:
        console.say("nothing to remove")
        return
    verb = "dry run: would free" if dry_run else "freed"
    rows = [(one.reference, one.what, size(one.num_bytes)) for one in removed]
    console.table(f"{verb} {size(freed)}", ("removed", "kind", "size"), rows)


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
    console.next_command("runs", "ls", shown=not quiet, runs_dir=runs_dir)


def _shortened(values: dict[str, Any]) -> dict[str, Any]:
    return {name: readable(value, commas=False, shown=_SHOWN) for name, value in values.items()}
