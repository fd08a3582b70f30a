"""`titokctl demo`."""

from pathlib import Path
from typing import Annotated

import typer

from titokctl.cli import console
from titokctl.cli.options import Json, Quiet, Seed

EXAMPLE = "Example: titokctl demo -o demo"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo", epilog=EXAMPLE)(demo)


def demo(
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Where everything goes.")] = Path(
        "demo"
    ),
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run the whole chain on map tiles of the Earth, in minutes on two cores.

    Shards, tokenizer, token cache, generator, samples, scores: all real, all small. Needs the demo extra.
    Run it again to go on with a stopped one.
    """
    from titokctl.distributed.stop import StopRequest
    from titokctl.jobs.demo import demo as job
    from titokctl.jobs.demo_report import headline_rows, yardstick_rows

    with StopRequest() as stop:
        result = job(output, seed=seed, progress=console.progress(quiet), stop=stop)
    if as_json:
        from dataclasses import asdict

        console.emit_json(asdict(result) | {"kid_ratio": result.scores.kid_ratio})
        return
    console.pairs("titokctl demo", dict(headline_rows(result)))
    console.table("distance to the training tiles", ("set", "images", "fd-lite0", "KID"), yardstick_rows(result.scores))
    console.say(f"report: {result.report}; pictures: {output}/samples.png, {output}/reconstructions.png")
