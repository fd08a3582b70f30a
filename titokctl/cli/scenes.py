"""`titokctl scenes`."""

from pathlib import Path
from typing import Annotated

from titokctl.cli import console, options
from titokctl.cli.app import app
from titokctl.cli.options import option
from titokctl.cli.work import Surroundings, perform
from titokctl.readable import counted


@app.command(epilog="Example: titokctl scenes -o scenes/ -n 10000")
def scenes(
    output: Annotated[Path, option("--output -o", "The folder of shards to make.", "FOLDER")],
    num_images: Annotated[int, option("-n --num-images", "Training images.")] = 10_000,
    held_out: Annotated[int, option("--heldout", "Held-out images.")] = 1_000,
    size: Annotated[int, option("--size", "Edge of the images in pixels.", "PIXELS")] = 64,
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Render pictures of solids as WebDataset shards: 5 shapes in 6 colours, with all factors in a JSON file each.

    They lie in FOLDER/train and FOLDER/heldout. To resume, run the same command again.
    """
    from titokctl.jobs.scenes import Scenes

    result = perform(Scenes(output, num_images, held_out, size, seed, overwrite), Surroundings(quiet, as_json, dry_run))
    if as_json:
        console.emit_json(result)
    elif not quiet:
        further = f", {result.held_out_images:,} in {result.held_out}" if result.held_out else ""
        images, classes = counted(result.images, "images"), counted(len(result.class_names), "classes")
        console.say(f"{images} of {classes} in {result.train}{further}")
        judged = ["--val", result.held_out] if result.held_out else []
        console.next_command("train-tokenizer", result.train, *judged, shown=True)
