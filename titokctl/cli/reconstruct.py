"""`titokctl reconstruct`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from titokctl.cli import console, options
from titokctl.cli.app import app
from titokctl.cli.options import option
from titokctl.cli.work import Machine, Surroundings, perform

if TYPE_CHECKING:
    from titokctl.jobs.evaluate.reconstruct import ReconstructResult


@app.command(epilog="Example: titokctl reconstruct imagenet/val/ -n 1000 -o reconstructed/")
def reconstruct(
    data: Annotated[list[str], typer.Argument(metavar="DATA", help="A folder of images, or tar shards.")],
    tokenizer: options.Tokenizer = None,
    output: Annotated[Path, option("--output -o", "The folder for the picture and the scores.", "DIR")] = Path(
        "reconstructed"
    ),
    num_images: Annotated[
        int | None, option("-n --num-images", "Number of images, spread over DATA; default: all.")
    ] = None,
    features: Annotated[
        str,
        option(
            "--features",
            "Network for rFID against the originals; auto: Inception or lite0 (not rFID), if on this machine.",
            "auto|inception|lite0|lite2|none",
        ),
    ] = "auto",
    lpips: Annotated[
        bool | None,
        option("--lpips/--no-lpips", "Compute LPIPS; default: if its weights are on this machine.", show_default=False),
    ] = None,
    skip_bad: Annotated[bool, option("--skip-bad", "Leave out images that can't be read.")] = False,
    split: options.Split = None,
    image_key: options.ImageKey = None,
    image_column: options.ImageColumn = None,
    exif: options.Exif = None,
    device: options.Device = None,
    gpus: options.Gpus = None,
    procs: options.Procs = None,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    runs_dir: options.RunsDir = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Show images above their reconstructions, and measure them: PSNR, SSIM, LPIPS, rFID, IS, codebook use."""
    from titokctl.distributed.place import place
    from titokctl.jobs.evaluate.reconstruct import Reconstruct, trained_on

    job = Reconstruct(data, tokenizer, output, num_images, features, lpips, skip_bad, overwrite)
    job = replace(job, choices=options.choices(split, image_key=image_key, image_column=image_column), exif=exif)
    result = perform(job, Surroundings(quiet, as_json, dry_run, runs_dir, machine=Machine(device, gpus, procs)))
    if place().is_main:
        console.result(result if as_json else replace(result, about=_briefly(result)), as_json, "reconstructions")
        chosen = [] if tokenizer is None else ["--tokenizer", tokenizer]
        console.next_command(
            "tokenize", *trained_on(result, data), *chosen, "-o", "tokens.h5", shown=not quiet, runs_dir=runs_dir
        )


def _briefly(result: "ReconstructResult") -> dict[str, object]:
    """Return what was compared, for people; the file with the result has all of it."""
    about = result.about
    features = about.get("features") or {}
    return {
        "tokenizer": about["tokenizer"],
        "originals": about["source"]["paths"],
        "features": features.get("name"),
        "details": Path(result.output) / "reconstruction.json",
    }
