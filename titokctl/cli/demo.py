"""`titokctl demo`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from titokctl.cli import console, options
from titokctl.cli.app import app
from titokctl.cli.options import option
from titokctl.cli.work import Surroundings, perform


@app.command(epilog="Example: titokctl demo -o demo")
def demo(
    output: Annotated[Path, option("-o --output", "The folder for all results.", "DIR")] = Path("demo"),
    images: Annotated[
        Path | None, option("--images", "A folder of your own images, with or without class folders.", "FOLDER")
    ] = None,
    seed: options.Seed = 0,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Run the whole chain from scratch on rendered scenes, in minutes on two cores.

    It makes shards, a tokenizer, a token cache, a generator, samples and scores, all small. Needs the demo extra.
    Your own images are resized to 64 px; expect their colours and rough shapes, and samples that need thousands of
    images. To resume, run the same command again.
    """
    from titokctl.jobs.demo.chain import Demo
    from titokctl.jobs.demo.report import further_rows, headline_rows, yardstick_columns, yardstick_rows

    result = perform(Demo(output, seed, images), Surroundings(quiet, as_json))
    if as_json:
        console.emit_json(asdict(result) | {"kid_ratio": result.scores.kid_ratio})
        return
    console.pairs("titokctl demo", dict(headline_rows(result) + further_rows(result)))
    console.table("distance to training images", yardstick_columns(result.scores), yardstick_rows(result.scores))
    console.say(f"report: {result.report}; pictures: {output}/samples.png, {output}/reconstructions.png")
