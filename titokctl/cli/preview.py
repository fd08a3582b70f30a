"""`titokctl preview`."""

from pathlib import Path
from typing import Annotated

from titokctl.cli import console, options
from titokctl.cli.app import app
from titokctl.cli.options import option
from titokctl.cli.work import alone


@app.command(epilog="Example: titokctl preview tokens.h5 -n 64 -o grid.png")
def preview(
    path: options.Tokens,
    output: Annotated[Path, option("--output -o", "The PNG to write.", "FILE")] = Path("preview.png"),
    count: Annotated[int, option("-n --num-images", "Rows, evenly spread over the cache.", min=1)] = 64,
    view: options.View = "plain",
    source: Annotated[
        str | None, option("--source", "Put the images it was made of above their rows.", "PATH|recorded")
    ] = None,
    tokenizer: options.MadeWith = None,
    device: options.Device = None,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    runs_dir: options.RunsDir = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Decode rows of a token cache into a picture."""
    from titokctl.formats.run_folder import runs_root
    from titokctl.jobs.caches.preview import preview as job
    from titokctl.models.device import device_named

    with alone(quiet, dry_run, as_json) as (progress, _):
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
            progress=progress,
        )
    console.result(result, as_json, "preview")
