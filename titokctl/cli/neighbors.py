"""`titokctl neighbors`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from titokctl.cli import console, options
from titokctl.cli.app import app
from titokctl.cli.options import option
from titokctl.cli.work import Surroundings, perform
from titokctl.readable import counted


@app.command(epilog="Example: titokctl neighbors train.h5 heldout.h5")
def neighbors(
    path: options.Tokens,
    other: Annotated[
        Path | None, typer.Argument(metavar="OTHER", help="A second cache, to compare with the first.")
    ] = None,
    max_distance: Annotated[
        int | None, option("--max-distance", "How many ids may differ; default: a quarter.", min=0)
    ] = None,
    shown: Annotated[int, option("-n --num-pairs", "How many of the closest pairs to list.", min=0)] = 20,
    as_json: options.Json = False,
) -> None:
    """Find near-duplicate images by their ids, within a cache or between two."""
    from titokctl.jobs.caches.neighbors import Neighbors

    found = perform(Neighbors(path, other, max_distance, shown), Surroundings(quiet=True))
    if not found.pairs and not as_json:
        compared = counted(found.compared, "pairs")
        print(f"no pairs within a distance of {found.max_distance}; {compared} compared")
        return
    if as_json:
        console.emit_json(found)
        return
    console.pairs("near-duplicates", {name: value for name, value in asdict(found).items() if name != "closest"})
    if found.closest:
        columns = ["distance", "row", "key", "other_row", "other_key"]  # with labels, few names would fit beside them
        console.table("closest pairs", columns, [[pair[name] for name in columns] for pair in found.closest])
