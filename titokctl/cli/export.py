"""`titokctl export`."""

from pathlib import Path
from typing import Annotated

from titokctl.cli import console, options
from titokctl.cli.app import app
from titokctl.cli.options import option
from titokctl.cli.work import alone


@app.command(epilog="Example: titokctl export tokens.h5 --to jsonl -o tokens.jsonl")
def export(
    path: options.Tokens,
    to: Annotated[str, option("--to", "The form to write.", "jsonl|npy|safetensors|wds")],
    output: Annotated[Path | None, option("--output -o", "By default TOKENS with the form's ending.", "FILE")] = None,
    view: options.View = "plain",
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Write the ids of a token cache for other programs.

    jsonl has one {"class_id", "tokens"} a line, npy the ids alone, safetensors ids, labels and where they come from;
    wds is a folder of WebDataset shards with a sample a row.
    """
    from titokctl.jobs.caches.export import export as job

    target = output or path.with_name(f"{path.stem}-wds" if to == "wds" else f"{path.stem}.{to}")
    with alone(quiet, dry_run, as_json) as (progress, stop):
        result = job(path, target, to, view=view, overwrite=overwrite, progress=progress, stop=stop)
    console.result(result, as_json, "exported")
