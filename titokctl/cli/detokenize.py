"""`titokctl detokenize`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from titokctl.cli import console, options
from titokctl.cli.app import app
from titokctl.cli.options import option
from titokctl.cli.work import Surroundings, perform


@app.command(epilog='Example: titokctl detokenize "12 5 900 ..." -o out.png')
def detokenize(
    ids: Annotated[list[str], typer.Argument(metavar="IDS", help="Ids, as tokenize prints them; - reads stdin.")],
    output: Annotated[Path, option("--output -o", "The PNG to write.", "FILE")],
    tokenizer: options.Tokenizer = None,
    device: options.Device = None,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    runs_dir: options.RunsDir = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Turn ids into a picture; several images are put side by side."""
    from titokctl.jobs.tokenize.ids import Detokenize

    texts = [sys.stdin.read()] if ids == ["-"] else ids
    job = Detokenize(texts, output, tokenizer, overwrite)
    console.result(perform(job, Surroundings(quiet, as_json, dry_run, runs_dir, device)), as_json, "picture")
