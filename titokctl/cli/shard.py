"""`titokctl shard`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from titokctl.cli import console
from titokctl.cli.options import Json, Overwrite, Quiet, Seed

EXAMPLE = "Example: titokctl shard imagenet/ -o shards/"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=EXAMPLE)(shard)


def shard(
    paths: Annotated[list[str], typer.Argument(metavar="PATH", help="A folder of class folders, or other shards.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="The folder of shards to make.")],
    per_shard: Annotated[int, typer.Option("--per-shard", min=1, help="Images in a shard, at most.")] = 1000,
    max_bytes: Annotated[
        int | None,
        typer.Option("--max-bytes", min=1, help="Bytes of images in a shard, at most; no limit by default."),
    ] = None,
    shuffle: Annotated[
        bool, typer.Option("--shuffle/--no-shuffle", help="Mix the images, so that every shard holds all classes.")
    ] = True,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Pack images into WebDataset shards, bytes unchanged.

    Images that can't be decoded are named in FOLDER/rejected.jsonl. Run the same command again to go on.
    """
    from titokctl.distributed.stop import StopRequest
    from titokctl.jobs.shard import REJECTED_NAME
    from titokctl.jobs.shard import shard as job

    with StopRequest() as stop:
        result = job(
            paths,
            output,
            per_shard=per_shard,
            max_bytes=max_bytes,
            shuffle=shuffle,
            seed=seed,
            overwrite=overwrite,
            progress=console.progress(quiet),
            stop=stop,
        )
    if as_json:
        console.emit_json(asdict(result))
    elif not quiet:
        order = f"mixed over the classes (seed {seed})" if shuffle else "in the order of the source"
        images, shards = f"{result.samples:,} images", f"{result.shards:,} shards"
        console.say(f"{result.folder}: {images} of {len(result.class_names):,} classes in {shards}, {order}")
        if result.rejected:
            console.say(f"{len(result.rejected):,} were left out: see {result.folder / REJECTED_NAME}")
