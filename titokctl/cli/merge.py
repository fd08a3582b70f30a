"""`titokctl merge`."""

from pathlib import Path
from typing import Annotated

import typer

from titokctl.cli import console, options
from titokctl.cli.app import app
from titokctl.cli.options import option
from titokctl.cli.work import alone


@app.command(epilog="Example: titokctl merge a.h5 b.h5 -o both.h5")
def merge(
    paths: Annotated[list[Path], typer.Argument(metavar="TOKENS", help="Token caches of one tokenizer.")],
    output: Annotated[Path, option("--output -o", "The token cache to make.", "FILE")],
    compress: options.Compress = False,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Join token caches made with the same settings, their rows one after the other.

    A folder of parts becomes one file this way, and a compressed one is unpacked.
    """
    from titokctl.jobs.merge import merge as job

    with alone(quiet, dry_run, as_json) as (progress, stop):
        result = job(paths, output, compress=compress, overwrite=overwrite, progress=progress, stop=stop)
    console.result(result, as_json, "merged")
