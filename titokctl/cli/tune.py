"""`titokctl tune`."""

from functools import partial
from pathlib import Path
from typing import Annotated

from titokctl.cli import console, features, options
from titokctl.cli.app import app
from titokctl.cli.options import option
from titokctl.cli.work import Surroundings, perform

_race = partial(option, panel="The race")


@app.command(epilog="Example: titokctl tune --ref heldout/ --features lite2 --minutes 10 -o tuned")
def tune(
    reference: Annotated[Path | None, option("--ref", "Held-out images, or statistics of them.", "HELDOUT")] = None,
    generator: Annotated[
        str | None,
        options.generator("The generator; default: the newest trained one."),
    ] = None,
    tokenizer: Annotated[
        str | None, options.tokenizer("The decoder; default: the tokenizer the generator was trained for.")
    ] = None,
    output: Annotated[Path, option("-o --output", "Folder of the results.", "DIR")] = Path("tuned"),
    metric: Annotated[str, _race("--metric", "The metric to lower.", "kid|fid")] = "kid",
    minutes: Annotated[float | None, _race("--minutes", "Time for drawing and judging images; 10 by default.")] = None,
    images: Annotated[int | None, _race("--images", "Images to draw in all, instead of --minutes.")] = None,
    candidates: Annotated[int, _race("--candidates", "Number of settings to compare, including the preset.")] = 24,
    seed: Annotated[int, _race("--seed", "Seed of the settings to try.")] = 0,
    network: features.Features = "inception",
    inception_weights: features.InceptionWeights = None,
    skip_bad: features.SkipBad = False,
    fast: features.Fast = False,
    tf32: features.Tf32 = False,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    device: options.Device = None,
    runs_dir: options.RunsDir = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Find better sampling settings for a trained generator, if there are any.

    Settings race on common random numbers; the best are compared with the generator's own on unseen images. What
    `titokctl sample --settings tuned/settings.yaml` takes is better at p < 0.05, or the generator's own settings.
    To resume, run the same command again.
    """
    from titokctl.jobs.tune.report import FINALIST_COLUMNS, finalist_rows, in_words
    from titokctl.jobs.tune.request import Tune

    job = Tune(
        reference, output, generator, tokenizer, metric, features.network(network, inception_weights, fast, tf32=tf32),
        minutes, images, candidates, seed, overwrite, skip_bad,
    )  # fmt: skip
    found = perform(job, Surroundings(quiet, as_json, dry_run, runs_dir, device))
    if as_json:
        console.emit_json(found)
        return
    console.table("finalists and preset", FINALIST_COLUMNS, finalist_rows(found))
    for sentence in in_words(found):
        console.say(sentence)
    console.say(f"settings: {found.settings}; report: {output}/report.html")
    console.next_command("sample", "--settings", found.settings, shown=not quiet, runs_dir=runs_dir)
