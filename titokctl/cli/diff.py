"""`titokctl diff`."""

from pathlib import Path
from typing import Annotated

import typer

from titokctl.cli import console, options
from titokctl.cli.app import app
from titokctl.cli.work import Surroundings, perform


@app.command(epilog="Example: titokctl diff float32.h5 bf16.h5")
def diff(
    first: Annotated[Path, typer.Argument(metavar="A", help="A token cache.", callback=options.address)],
    second: Annotated[
        Path, typer.Argument(metavar="B", help="Another cache of the same images.", callback=options.address)
    ],
    view: options.View = "plain",
    tokenizer: options.MadeWith = None,
    device: options.Device = None,
    runs_dir: options.RunsDir = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Compare two caches of the same images: ids, ids by position, and decoded pixels in dB."""
    from titokctl.jobs.caches.diff import Diff

    around = Surroundings(quiet, as_json, runs_dir=runs_dir, device=device)
    found = perform(Diff(first, second, view, tokenizer), around)
    if not as_json and not quiet:
        for remark in found.remarks:
            console.say(remark)
    console.result(found, as_json, "difference")
