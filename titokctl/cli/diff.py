"""`titokctl diff`."""

from pathlib import Path
from typing import Annotated

import typer

from titokctl.cli import console, options
from titokctl.cli.app import app
from titokctl.cli.work import alone


@app.command(epilog="Example: titokctl diff float32.h5 bf16.h5")
def diff(
    first: Annotated[Path, typer.Argument(metavar="A", help="A token cache.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another cache of the same images.")],
    view: options.View = "plain",
    tokenizer: options.MadeWith = None,
    device: options.Device = None,
    runs_dir: options.RunsDir = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Say how far two caches of the same images agree: in ids, by position, and decoded, in dB."""
    from titokctl.formats.run_folder import runs_root
    from titokctl.jobs.caches.diff import diff as job
    from titokctl.models.device import device_named

    with alone(quiet) as (progress, stop):
        found = job(
            first,
            second,
            runs_root(runs_dir),
            view=view,
            tokenizer=tokenizer,
            device=device_named(device),
            progress=progress,
            stop=stop,
        )
    if not as_json and not quiet:
        for remark in found.remarks:
            console.say(remark)
    console.result(found, as_json, "difference")
