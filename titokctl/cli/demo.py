"""`titokctl demo`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from titokctl.cli import console, options
from titokctl.cli.app import app
from titokctl.cli.options import option
from titokctl.cli.work import alone


@app.command(epilog="Example: titokctl demo -o demo")
def demo(
    output: Annotated[Path, option("-o --output", "Where everything goes.", "DIR")] = Path("demo"),
    seed: options.Seed = 0,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Run the whole chain on map tiles of the Earth, in minutes on two cores.

    Shards, tokenizer, token cache, generator, samples, scores: all real, all small. Needs the demo extra.
    Run it again to go on with a stopped one.
    """
    from titokctl.jobs.demo.chain import demo as job
    from titokctl.jobs.demo.report import headline_rows, yardstick_rows

    with alone(quiet) as (progress, stop):
        result = job(output, seed=seed, progress=progress, stop=stop)
    if as_json:
        console.emit_json(asdict(result) | {"kid_ratio": result.scores.kid_ratio})
        return
    console.pairs("titokctl demo", dict(headline_rows(result)))
    console.table("distance to the training tiles", ("set", "images", "fd-lite0", "KID"), yardstick_rows(result.scores))
    console.say(f"report: {result.report}; pictures: {output}/samples.png, {output}/reconstructions.png")
