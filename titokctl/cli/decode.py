"""`titokctl decode`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from titokctl.cli import console, options
from titokctl.cli.app import app
from titokctl.cli.options import option
from titokctl.cli.work import Surroundings, perform


@app.command(epilog="Example: titokctl decode samples/ids.h5 -o out.npz")
def decode(
    path: Annotated[
        Path,
        typer.Argument(metavar="TOKENS", help="A token cache, a sample set, or ids.jsonl.", callback=options.address),
    ],
    output: Annotated[Path, option("--output -o", "Where to write the images.", "FILE.npz|FOLDER")],
    image_format: Annotated[
        Literal["npz", "png", "webp", "wds"] | None,
        option("--format", "npz for a FILE.npz, else png by default; webp is lossless, wds are shards."),
    ] = None,
    view: options.View = "plain",
    tokenizer: options.MadeWith = None,
    batch_size: Annotated[int | None, option("--batch-size", "Images decoded at once.", min=1)] = None,
    precision: Annotated[
        Literal["float32", "tf32", "bf16", "fp16"] | None,
        option("--precision", "Default: that of the sample set, or the device's fastest.", "float32|tf32|bf16|fp16"),
    ] = None,
    device: options.Device = None,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    runs_dir: options.RunsDir = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Decode the ids of a token cache, or of a file of JSON lines, to images.

    To resume a stopped run, run the same command again.
    """
    from titokctl.formats.sample_set import IDS, MANIFEST
    from titokctl.jobs.decode import Decode

    request = Decode(path, output, image_format, view, tokenizer, batch_size, precision, overwrite)
    result = perform(request, Surroundings(quiet, as_json, dry_run, runs_dir, device))
    console.result(result, as_json, "images")
    # Ids that were drawn do not say which images they are compared with; the manifest beside them does.
    is_drawn = path.name == IDS
    if path.is_dir() or (path.suffix == ".h5" and not is_drawn) or (is_drawn and (path.parent / MANIFEST).is_file()):
        console.next_command("fid", path.parent if is_drawn else path, shown=not quiet, runs_dir=runs_dir)
