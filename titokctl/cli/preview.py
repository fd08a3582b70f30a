"""`titokctl preview`."""

from pathlib import Path
from typing import Annotated

import typer

from titokctl.cli import console
from titokctl.cli.options import Device, Json, MadeWith, Overwrite, Quiet, RunsDir

EXAMPLE = "Example: titokctl preview tokens.h5 -n 64 -o grid.png"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=EXAMPLE)(preview)


def preview(
    path: Annotated[Path, typer.Argument(metavar="TOKENS", help="A token cache.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The PNG to write.")] = Path(
        "preview.png"
    ),
    count: Annotated[int, typer.Option("-n", "--num-images", min=1, help="Rows, evenly spread over the cache.")] = 64,
    view: Annotated[str, typer.Option("--view", help="plain, or a further view such as flip.")] = "plain",
    source: Annotated[
        str | None,
        typer.Option("--source", metavar="PATH|recorded", help="Put the images it was made of above their rows."),
    ] = None,
    tokenizer: MadeWith = None,
    device: Device = None,
    overwrite: Overwrite = False,
    runs_dir: RunsDir = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Decode rows of a token cache into a picture."""
    from titokctl.formats.run_folder import runs_root
    from titokctl.jobs.preview import preview as job
    from titokctl.models.device import device_named

    result = job(
        path,
        output,
        runs_root(runs_dir),
        count=count,
        view=view,
        source=None if source == "recorded" else source,
        recorded_source=source == "recorded",
        tokenizer=tokenizer,
        overwrite=overwrite,
        device=device_named(device),
        progress=console.progress(quiet),
    )
    console.result(result, as_json, "preview")
