"""`titokctl export`."""

from pathlib import Path
from typing import Annotated

from titokctl.cli import console, options
from titokctl.cli.app import app
from titokctl.cli.options import option
from titokctl.cli.work import Surroundings, perform


@app.command(epilog="Example: titokctl export tokens.h5 --to jsonl -o tokens.jsonl")
def export(
    path: options.Tokens,
    to: Annotated[str, option("--to", "The form to write.", "jsonl|npy|safetensors|wds")],
    output: Annotated[
        Path | None, option("--output -o", "Default: the name of TOKENS with the form's ending.", "FILE")
    ] = None,
    view: options.View = "plain",
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Write the ids of a token cache for other programs.

    jsonl has a line {"class_id", "tokens"} per row, npy the ids alone, safetensors ids, labels and their origin; wds is
    a folder of WebDataset shards with a sample per row.
    """
    from titokctl.jobs.caches.export import Export

    result = perform(Export(path, to, output, view, overwrite), Surroundings(quiet, as_json, dry_run))
    console.result(result, as_json, "exported")
