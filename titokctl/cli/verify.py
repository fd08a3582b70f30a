"""`titokctl verify`."""

from typing import Annotated

import typer

from titokctl.cli import console, options
from titokctl.cli.app import app
from titokctl.cli.options import option
from titokctl.cli.work import Surroundings, perform
from titokctl.errors import EXIT_FAILED


@app.command(epilog="Example: titokctl verify tokens.h5")
def verify(
    path: options.Tokens,
    sample: Annotated[int, option("--sample", "How many random images to encode again and compare.", min=0)] = 0,
    seed: options.Seed = 0,
    tokenizer: options.MadeWith = None,
    source: Annotated[
        str | None,
        option("--source", "The images the cache was made from; `recorded`: the recorded path.", "PATH|recorded"),
    ] = None,
    device: options.Device = None,
    runs_dir: options.RunsDir = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Check a token cache: structure, ids, labels and checksums.

    With --source, the number of rows is compared with the images; with --sample, random ones are encoded again, too.
    """
    from titokctl.jobs.caches.verify import Verify

    around = Surroundings(quiet, as_json, runs_dir=runs_dir, device=device)
    result = perform(Verify(path, sample, seed, tokenizer, source), around)
    console.result(result, as_json, "verified")
    if not quiet:
        for remark in result.remarks:
            console.say(f"not checked against the source: {remark}")
    for problem in result.problems:
        console.error(problem)
    if result.problems:
        raise typer.Exit(EXIT_FAILED)
