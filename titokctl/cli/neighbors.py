"""`titokctl neighbors`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from titokctl.cli import console
from titokctl.cli.options import Json

EXAMPLE = "Example: titokctl neighbors train.h5 heldout.h5"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=EXAMPLE)(neighbors)


def neighbors(
    path: Annotated[Path, typer.Argument(metavar="TOKENS", help="A token cache.")],
    other: Annotated[
        Path | None, typer.Argument(metavar="OTHER", help="A second one; pairs are then between the two.")
    ] = None,
    max_distance: Annotated[
        int | None, typer.Option("--max-distance", min=0, help="Ids that may differ; by default a quarter of them.")
    ] = None,
    shown: Annotated[int, typer.Option("-n", "--num-pairs", min=0, help="Closest pairs to name.")] = 20,
    as_json: Json = False,
) -> None:
    """Find nearly equal images by their ids: duplicates, or leakage between two sets."""
    from titokctl.jobs.neighbors import neighbors as job

    found = job(path, other, max_distance=max_distance, shown=shown)
    console.result(found if as_json else replace(found, closest=[]), as_json, "near-duplicates")
    if found.closest and not as_json:
        columns = ["distance", "row", "key", "label", "other_row", "other_key", "other_label"]
        console.table("closest pairs", columns, [[pair[name] for name in columns] for pair in found.closest])
