"""`titokctl inspect`."""

from pathlib import Path
from typing import Annotated

import typer

from titokctl.cli import completion, console, options
from titokctl.cli.app import app
from titokctl.cli.work import Surroundings, perform
from titokctl.readable import readable

_CLASSES_SHOWN = 30


@app.command(epilog="Example: titokctl inspect tokens.h5")
def inspect(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="FILE|RUN|NAME",
            help="A token cache, weights, a run or RUN@STEP, shards, ...",
            autocompletion=completion.runs,
        ),
    ],
    runs_dir: options.RunsDir = None,
    as_json: options.Json = False,
) -> None:
    """Describe a file or folder: its kind, origin and contents, and how much of the codebook it uses."""
    from titokctl.jobs.caches.inspect import Inspect

    found = perform(Inspect(path), Surroundings(quiet=True, runs_dir=runs_dir))
    if as_json:
        console.emit_json(found)
        return
    console.pairs(f"{found.path}: {found.what}", {name: readable(value) for name, value in found.facts.items()})
    if found.classes:
        shown = list(found.classes.items())[:_CLASSES_SHOWN]
        more = len(found.classes) - len(shown)
        console.table("rows per class", ["class", "rows"], shown, f"and {more:,} more" if more else "")
    if found.positions:
        names = list(found.positions[0])
        rows = [[readable(position[name]) for name in names] for position in found.positions]
        console.table("codebook usage by position", names, rows)
