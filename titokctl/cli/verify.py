"""`titokctl verify`."""

from pathlib import Path
from typing import Annotated

import typer

from titokctl.cli import console
from titokctl.cli.options import Json, Quiet
from titokctl.errors import EXIT_FAILED

EXAMPLE = "Example: titokctl verify tokens.h5"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=EXAMPLE)(verify)


def verify(
    path: Annotated[Path, typer.Argument(metavar="TOKENS", help="A token cache.")],
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Check a token cache: structure, ids, labels, checksums, and the number of rows against its source."""
    from titokctl.distributed.stop import StopRequest
    from titokctl.jobs.verify import verify as job

    with StopRequest() as stop:
        result = job(path, progress=console.progress(quiet), stop=stop)
    console.result(result, as_json, "verified")
    if not quiet:
        for remark in result.remarks:
            console.say(f"not checked against the source: {remark}")
    for problem in result.problems:
        console.error(problem)
    if result.problems:
        raise typer.Exit(EXIT_FAILED)
