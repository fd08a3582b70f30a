"""`titokctl shard`."""

from pathlib import Path
from typing import Annotated

import typer

from titokctl.cli import console, options
from titokctl.cli.app import app
from titokctl.cli.options import option
from titokctl.cli.work import Surroundings, perform
from titokctl.readable import counted


@app.command(epilog="Example: titokctl shard imagenet/ -o shards/")
def shard(
    paths: Annotated[list[str], typer.Argument(metavar="PATH", help="A folder of class folders, or other shards.")],
    output: Annotated[Path, option("--output -o", "The folder of shards to make.", "FOLDER")],
    per_shard: Annotated[int, option("--per-shard", "Images in a shard, at most.", min=1)] = 1000,
    max_bytes: Annotated[
        int | None, option("--max-bytes", "Bytes of images in a shard, at most; no limit by default.", min=1)
    ] = None,
    shuffle: Annotated[
        bool, option("--shuffle/--no-shuffle", "Mix the images, so that every shard holds all classes.")
    ] = True,
    seed: options.Seed = 0,
    split: options.Split = None,
    classes: options.Classes = None,
    no_labels: options.NoLabels = False,
    sort: options.Sort = None,
    image_key: options.ImageKey = None,
    label_key: options.LabelKey = None,
    image_column: options.ImageColumn = None,
    label_column: options.LabelColumn = None,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Pack images into WebDataset shards; their bytes don't change.

    Images that can't be decoded are listed in FOLDER/rejected.jsonl. To resume, run the same command again.
    """
    from titokctl.jobs.shard import REJECTED_NAME, Shard

    chosen = options.choices(
        split,
        classes,
        no_labels,
        sort=sort,
        image_key=image_key,
        image_column=image_column,
        label_key=label_key,
        label_column=label_column,
    )
    job = Shard(paths, output, per_shard, max_bytes, shuffle, seed, overwrite, chosen)
    result = perform(job, Surroundings(quiet, as_json, dry_run))
    if as_json:
        console.emit_json(result)
    elif not quiet:
        order = f"shuffled with seed {seed}" if shuffle else "in the order of the source"
        images, shards = counted(result.samples, "images"), counted(result.shards, "shards")
        console.say(f"{result.folder}: {images} of {counted(len(result.class_names), 'classes')} in {shards}, {order}")
        console.next_command("train-tokenizer", result.folder, shown=True)
    if result.rejected:
        console.warn(f"{counted(len(result.rejected), 'images')} left out: see {result.folder / REJECTED_NAME}")
