"""`titokctl preview`."""

from pathlib import Path
from typing import Annotated

from titokctl.cli import console, options
from titokctl.cli.app import app
from titokctl.cli.options import option
from titokctl.cli.work import Surroundings, perform


@app.command(epilog="Example: titokctl preview tokens.h5 -n 64 -o grid.png")
def preview(
    path: options.Tokens,
    output: Annotated[Path, option("--output -o", "The PNG to write.", "FILE")] = Path("preview.png"),
    count: Annotated[int, option("-n --num-images", "How many rows, spread over the cache.", min=1)] = 64,
    view: options.View = "plain",
    source: Annotated[
        str | None,
        option("--source", "Draw the images that the cache was made from above their rows.", "PATH|recorded"),
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
    from titokctl.jobs.caches.preview import Preview

    job = Preview(path, output, count, view, source, tokenizer, overwrite)
    around = Surroundings(quiet, as_json, dry_run, runs_dir, device)
    console.result(perform(job, around), as_json, "preview")
    console.next_command("train-gen", path, shown=not quiet, runs_dir=runs_dir)
