"""`titokctl merge`."""

from pathlib import Path
from typing import Annotated

import typer

from titokctl.cli import console
from titokctl.cli.options import Json, Overwrite, Quiet

EXAMPLE = "Example: titokctl merge a.h5 b.h5 -o both.h5"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=EXAMPLE)(merge)


def merge(
    paths: Annotated[list[Path], typer.Argument(metavar="TOKENS", help="Token caches of one tokenizer.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The token cache to make.")],
    compress: Annotated[
        bool, typer.Option("--compress", help="Deflate the rows: smaller, but read into memory.")
    ] = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Join token caches made with the same settings, their rows one after the other.

    A folder of parts becomes one file this way, and a compressed one is unpacked.
    """
    from titokctl.distributed.stop import StopRequest
    from titokctl.jobs.merge import merge as job

    with StopRequest() as stop:
        result = job(paths, output, compress=compress, overwrite=overwrite, progress=console.progress(quiet), stop=stop)
    console.result(result, as_json, "merged")
