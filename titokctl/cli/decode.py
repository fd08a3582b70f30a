"""`titokctl decode`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from titokctl.cli import console, options
from titokctl.cli.app import app
from titokctl.cli.options import option
from titokctl.cli.work import alone


@app.command(epilog="Example: titokctl decode samples/ids.h5 -o out.npz")
def decode(
    path: Annotated[Path, typer.Argument(metavar="TOKENS", help="A token cache, e.g. ids.h5 of a sample set.")],
    output: Annotated[Path, option("--output -o", "What to write the images into.", "FILE.npz|FOLDER")],
    image_format: Annotated[
        Literal["npz", "png", "webp", "wds"] | None,
        option("--format", "npz for a FILE.npz, else png by default; webp is lossless, wds are shards."),
    ] = None,
    view: options.View = "plain",
    tokenizer: options.MadeWith = None,
    batch_size: Annotated[int | None, option("--batch-size", "Images decoded at once.", min=1)] = None,
    precision: Annotated[
        Literal["float32", "bf16"] | None,
        option("--precision", "As a sample set was made, else the device's fastest."),
    ] = None,
    device: options.Device = None,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    runs_dir: options.RunsDir = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Turn the ids of a token cache into images.

    Run the same command again to go on with one that was stopped.
    """
    from titokctl.formats.run_folder import runs_root
    from titokctl.jobs.decode import decode as job
    from titokctl.models.device import device_named

    with alone(quiet, dry_run, as_json) as (progress, stop):
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
            progress=progress,
            stop=stop,
        )
    console.result(result, as_json, "images")
