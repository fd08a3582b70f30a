"""`titokctl inspect`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from titokctl.cli import console
from titokctl.cli.options import Json

EXAMPLE = "Example: titokctl inspect tokens.h5"
_CLASSES_SHOWN = 30


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=EXAMPLE)(inspect)


def inspect(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A token cache, weights, a run folder, shards, ...")],
    as_json: Json = False,
) -> None:
    """Say what a file or folder is: where it comes from, what is in it, how much of the codebook it uses."""
    from dataclasses import asdict

    from titokctl.jobs.inspect import inspect as job

    found = job(path)
    if as_json:
        console.emit_json(asdict(found))
        return
    console.pairs(f"{found.path}: {found.what}", {name: _readable(value) for name, value in found.facts.items()})
    if found.classes:
        shown = list(found.classes.items())[:_CLASSES_SHOWN]
        more = len(found.classes) - len(shown)
        console.table("rows a class", ["class", "rows"], shown, f"and {more:,} more" if more else "")
    if found.positions:
        names = list(found.positions[0])
        rows = [[_readable(position[name]) for name in names] for position in found.positions]
        console.table("use of the codebook by position", names, rows)


def _readable(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}" if value < 1 else f"{value:,.1f}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
