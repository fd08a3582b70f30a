"""`titokctl merge`."""

from pathlib import Path
from typing import Annotated

import typer

from titokctl.cli import console, options
from titokctl.cli.app import app
from titokctl.cli.options import option
from titokctl.cli.work import Surroundings, perform


@app.command(epilog="Example: titokctl merge a.h5 b.h5 -o both.h5")
def merge(
    paths: Annotated[list[Path], typer.Argument(metavar="TOKENS", help="Token caches made by one tokenizer.")],
    output: Annotated[Path, option("--output -o", "The token cache to write; at s3://... a folder of parts.", "FILE")],
    compress: options.Compress = False,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Concatenate the rows of token caches made with the same settings.

    This also turns a folder of parts into one file, and decompresses a cache.
    """
    from titokctl.jobs.caches.merge import Merge

    result = perform(Merge(paths, output, compress, overwrite), Surroundings(quiet, as_json, dry_run))
    console.result(result, as_json, "merged")
    console.next_command("train-gen", output, shown=not quiet)
