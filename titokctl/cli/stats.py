"""`titokctl stats`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from titokctl.cli import console, features, options
from titokctl.cli.app import app
from titokctl.cli.options import option
from titokctl.cli.work import Machine, Surroundings, perform


@app.command(epilog="Example: titokctl stats imagenet/ --size 256 --crop adm -o ref.npz")
def stats(
    data: Annotated[list[Path], typer.Argument(metavar="DATA", help="A folder of images, shards, an .npz, ...")],
    output: Annotated[Path, option("--output -o", "The statistics to make.", "FILE")],
    size: Annotated[
        int | None, option("--size", "Resize images to this edge in pixels; default: keep their size.", min=1)
    ] = None,
    crop: Annotated[str, options.crop("How --size makes squares.")] = "center",
    split: options.Split = None,
    image_key: options.ImageKey = None,
    image_column: options.ImageColumn = None,
    exif: features.Exif = False,
    network: features.Features = "inception",
    resize: features.Resize = "tf1",
    inception_weights: features.InceptionWeights = None,
    tokenizer: features.Tokenizer = None,
    skip_bad: features.SkipBad = False,
    fast: features.Fast = False,
    tf32: features.Tf32 = False,
    device: options.Device = None,
    gpus: options.Gpus = None,
    procs: options.Procs = None,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    runs_dir: options.RunsDir = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Write the statistics of a set of images, to be named as --ref of `titokctl fid`."""
    from titokctl.distributed.place import place
    from titokctl.jobs.evaluate.stats import Stats

    extractor = features.network(network, inception_weights, fast, resize, tf32)
    job = Stats(data, output, extractor, features.preprocessing(size, crop, exif), tokenizer, skip_bad, overwrite)
    job = replace(job, choices=options.choices(split, image_key=image_key, image_column=image_column), exif=exif)
    result = perform(job, Surroundings(quiet, as_json, dry_run, runs_dir, machine=Machine(device, gpus, procs)))
    if place().is_main:
        console.result(result, as_json, "statistics")
        console.next_command("fid", "--ref", output, "--features", network, shown=not quiet, runs_dir=runs_dir)
