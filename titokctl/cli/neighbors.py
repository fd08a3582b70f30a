"""`titokctl neighbors`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from titokctl.cli import console, options
from titokctl.cli.app import app
from titokctl.cli.options import option
from titokctl.progress import counted


@app.command(epilog="Example: titokctl neighbors train.h5 heldout.h5")
def neighbors(
    path: options.Tokens,
    other: Annotated[
        Path | None, typer.Argument(metavar="OTHER", help="A second one; pairs are then between the two.")
    ] = None,
    max_distance: Annotated[
        int | None, option("--max-distance", "Ids that may differ; by default a quarter of them.", min=0)
    ] = None,
    shown: Annotated[int, option("-n --num-pairs", "Closest pairs to name.", min=0)] = 20,
    as_json: options.Json = False,
) -> None:
    """Find nearly equal images by their ids: duplicates, or leakage between two sets."""
    from titokctl.jobs.caches.neighbors import neighbors as job

    found = job(path, other, max_distance=max_distance, shown=shown)
    if not found.pairs and not as_json:
        pairs = counted(found.compared, "pairs")
        print(f"none within a distance of {found.max_distance}: {pairs} of images compared")
        return
    console.result(found if as_json else replace(found, closest=[]), as_json, "near-duplicates")
    if found.closest and not as_json:
        columns = ["distance", "row", "key", "label", "other_row", "other_key", "other_label"]
        console.table("closest pairs", columns, [[pair[name] for name in columns] for pair in found.closest])
