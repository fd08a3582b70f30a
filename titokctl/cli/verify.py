"""`titokctl verify`."""

from pathlib import Path
from typing import Annotated

import typer

from titokctl.cli import console
from titokctl.cli.options import Device, Json, MadeWith, Quiet, RunsDir, Seed
from titokctl.errors import EXIT_FAILED

EXAMPLE = "Example: titokctl verify tokens.h5"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=EXAMPLE)(verify)


def verify(
    path: Annotated[Path, typer.Argument(metavar="TOKENS", help="A token cache.")],
    sample: Annotated[int, typer.Option("--sample", min=0, help="Random images to encode again and compare.")] = 0,
    seed: Seed = 0,
    tokenizer: MadeWith = None,
    device: Device = None,
    runs_dir: RunsDir = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Check a token cache: structure, ids, labels, checksums, and the number of rows against its source.

    With --sample, random images of the source are encoded again and compared with their rows.
    """
    from titokctl.distributed.stop import StopRequest
    from titokctl.formats.run_folder import runs_root
    from titokctl.jobs.verify import verify as job
    from titokctl.models.device import device_named

    with StopRequest() as stop:
        result = job(
            path,
            sample=sample,
            seed=seed,
            tokenizer=tokenizer,
            runs=runs_root(runs_dir),
            device=device_named(device),
            progress=console.progress(quiet),
            stop=stop,
        )
    console.result(result, as_json, "verified")
    if not quiet:
        for remark in result.remarks:
            console.say(f"not checked against the source: {remark}")
    for problem in result.problems:
        console.error(problem)
    if result.problems:
        raise typer.Exit(EXIT_FAILED)
