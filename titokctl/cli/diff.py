"""`titokctl diff`."""

from pathlib import Path
from typing import Annotated

import typer

from titokctl.cli import console
from titokctl.cli.options import Device, Json, MadeWith, Quiet, RunsDir

EXAMPLE = "Example: titokctl diff float32.h5 bf16.h5"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=EXAMPLE)(diff)


def diff(
    first: Annotated[Path, typer.Argument(metavar="A", help="A token cache.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another cache of the same images.")],
    view: Annotated[str, typer.Option("--view", help="plain, or a further view such as flip.")] = "plain",
    tokenizer: MadeWith = None,
    device: Device = None,
    runs_dir: RunsDir = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Say how far two caches of the same images agree: in ids, by position, and decoded, in dB."""
    from titokctl.distributed.stop import StopRequest
    from titokctl.formats.run_folder import runs_root
    from titokctl.jobs.diff import diff as job
    from titokctl.models.device import device_named

    with StopRequest() as stop:
        found = job(
            first,
            second,
            runs_root(runs_dir),
            view=view,
            tokenizer=tokenizer,
            device=device_named(device),
            progress=console.progress(quiet),
            stop=stop,
        )
    if not as_json and not quiet:
        for remark in found.remarks:
            console.say(remark)
    console.result(found, as_json, "difference")
