"""`titokctl export`."""

from pathlib import Path
from typing import Annotated

import typer

from titokctl.cli import console
from titokctl.cli.options import Json, Overwrite, Quiet

EXAMPLE = "Example: titokctl export tokens.h5 --to jsonl -o tokens.jsonl"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=EXAMPLE)(export)


def export(
    path: Annotated[Path, typer.Argument(metavar="TOKENS", help="A token cache.")],
    to: Annotated[str, typer.Option("--to", metavar="jsonl|npy|safetensors|wds", help="The form to write.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="By default TOKENS with the form's ending.")
    ] = None,
    view: Annotated[str, typer.Option("--view", help="plain, or a further view such as flip.")] = "plain",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write the ids of a token cache for other programs.

    jsonl has one {"class_id", "tokens"} a line, npy the ids alone, safetensors ids, labels and where they come from;
    wds is a folder of WebDataset shards with a sample a row.
    """
    from titokctl.distributed.stop import StopRequest
    from titokctl.jobs.export import export as job

    with StopRequest() as stop:
        result = job(
            path,
            output or path.with_name(f"{path.stem}-wds" if to == "wds" else f"{path.stem}.{to}"),
            to,
            view=view,
            overwrite=overwrite,
            progress=console.progress(quiet),
            stop=stop,
        )
    console.result(result, as_json, "exported")
