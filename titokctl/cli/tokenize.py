"""`titokctl tokenize`."""

from pathlib import Path
from typing import Annotated

import typer

from titokctl.cli import console
from titokctl.cli.options import Json, Overwrite, Quiet, RunsDir
from titokctl.errors import UsageError

EXAMPLE = "Example: titokctl tokenize imagenet/ -o tokens.h5"
_CROPS = ("center", "adm")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=EXAMPLE)(tokenize)


def tokenize(
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="A folder of images, or tar shards.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The token cache to make.")],
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", metavar="NAME|PATH", help="By default the newest trained one, else titok-l-32."),
    ] = None,
    views: Annotated[
        str, typer.Option("--views", metavar="flip|none", help="Further views of each image, kept beside it.")
    ] = "flip",
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=1, help="Images encoded at once; by default what suits the device."),
    ] = None,
    precision: Annotated[
        str, typer.Option("--precision", metavar="float32|tf32|bf16|fp16", help="Recorded in the cache.")
    ] = "float32",
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="Decoding threads [default: one per core].", show_default=False),
    ] = None,
    max_rejected: Annotated[
        float, typer.Option("--max-rejected", min=0, max=1, help="Largest share of images that may be unusable.")
    ] = 0.001,
    source: Annotated[
        str | None, typer.Option("--source", metavar="folder|shards", help="What PATH is, when it can't be told.")
    ] = None,
    accept_cut: Annotated[
        bool, typer.Option("--accept-cut", help="Take the whole images of shards that were cut; recorded.")
    ] = False,
    crop: Annotated[
        str,
        typer.Option("--crop", metavar="center|adm", help="adm halves large images first, as guided-diffusion does."),
    ] = "center",
    exif: Annotated[bool, typer.Option("--exif", help="Turn images as their EXIF tag says; recorded.")] = False,
    device: Annotated[str | None, typer.Option("--device", help="cpu or cuda; the best there is by default.")] = None,
    overwrite: Overwrite = False,
    runs_dir: RunsDir = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Turn images into a token cache.

    Every image is in it exactly once or named in FILE.rejected.jsonl. Run the same command again to go on.
    """
    if crop not in _CROPS:
        raise UsageError(f"there is no crop named {crop!r}", f"one of: {', '.join(_CROPS)}")
    from titokctl.distributed.stop import StopRequest
    from titokctl.formats.run_folder import runs_root
    from titokctl.jobs.tokenize import tokenize as job
    from titokctl.models.device import best_device

    with StopRequest() as stop:
        result = job(
            paths,
            output,
            tokenizer,
            runs_root(runs_dir),
            views=() if views == "none" else tuple(views.split(",")),
            batch_size=batch_size,
            precision_name=precision,  # type: ignore[arg-type]
            workers=workers,
            max_rejected=max_rejected,
            source_kind=source,
            accept_cut=accept_cut,
            crop=crop,
            exif=exif,
            overwrite=overwrite,
            device=device or best_device(),
            progress=console.progress(quiet),
            stop=stop,
        )
    if not quiet:
        console.say(f"{result.rows:,} rows + {result.rejected:,} rejected = {result.samples:,} images in the source")
    console.result(result, as_json, "token cache")
