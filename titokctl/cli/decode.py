"""`titokctl decode`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from titokctl.cli import console
from titokctl.cli.options import Device, Json, MadeWith, Overwrite, Quiet, RunsDir

EXAMPLE = "Example: titokctl decode samples/ids.h5 -o out.npz"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=EXAMPLE)(decode)


def decode(
    path: Annotated[Path, typer.Argument(metavar="TOKENS", help="A token cache, e.g. ids.h5 of a sample set.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE.npz|FOLDER", help="What to write the images into.")
    ],
    image_format: Annotated[
        Literal["npz", "png", "webp", "wds"] | None,
        typer.Option("--format", help="npz for a FILE.npz, else png by default; webp is lossless, wds are shards."),
    ] = None,
    view: Annotated[str, typer.Option("--view", help="plain, or a further view such as flip.")] = "plain",
    tokenizer: MadeWith = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", min=1, help="Images decoded at once.")] = None,
    precision: Annotated[
        Literal["float32", "bf16"] | None,
        typer.Option("--precision", help="As a sample set was made, else the device's fastest."),
    ] = None,
    device: Device = None,
    overwrite: Overwrite = False,
    runs_dir: RunsDir = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Turn the ids of a token cache into images.

    Run the same command again to go on with one that was stopped.
    """
    from titokctl.distributed.stop import StopRequest
    from titokctl.formats.run_folder import runs_root
    from titokctl.jobs.decode import decode as job
    from titokctl.models.device import device_named

    with StopRequest() as stop:
        result = job(
            path,
            output,
            runs_root(runs_dir),
            image_format=image_format,
            view=view,
            tokenizer=tokenizer,
            batch_size=batch_size,
            precision_name=precision,
            overwrite=overwrite,
            device=device_named(device),
            progress=console.progress(quiet),
            stop=stop,
        )
    console.result(result, as_json, "images")
