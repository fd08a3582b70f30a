"""`titokctl probe`."""

from dataclasses import replace
from typing import Annotated, Literal

import typer

from titokctl.cli import console, features, options
from titokctl.cli.app import app
from titokctl.cli.options import option
from titokctl.cli.work import Machine, Surroundings, perform


@app.command(epilog="Example: titokctl probe imagenet/train --val imagenet/val --tokenizer titok-l-32")
def probe(
    data: Annotated[list[str], typer.Argument(metavar="DATA", help="Labelled images: class folders or tar shards.")],
    validation: Annotated[
        list[str] | None, option("--val", "Held-out images of the same classes; repeatable.", "DATA")
    ] = None,
    val_fraction: Annotated[
        float, option("--val-fraction", "Share of DATA that is held out if --val is not given.")
    ] = 0.2,
    input: Annotated[
        Literal["latents", "ids"],
        option("--input", "Input of the probe: latents before quantizing, or code vectors of the ids.", "latents|ids"),
    ] = "latents",
    penalty: Annotated[float, option("--penalty", "Weight of the L2 penalty on the probe's weights.")] = 0.01,
    tokenizer: options.Tokenizer = None,
    skip_bad: features.SkipBad = False,
    split: options.Split = None,
    classes: options.Classes = None,
    sort: options.Sort = None,
    image_key: options.ImageKey = None,
    label_key: options.LabelKey = None,
    image_column: options.ImageColumn = None,
    label_column: options.LabelColumn = None,
    device: options.Device = None,
    gpus: options.Gpus = None,
    procs: options.Procs = None,
    runs_dir: options.RunsDir = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Fit a linear classifier to a frozen tokenizer's latents, and report its accuracy on held-out images."""
    from titokctl.distributed.place import place
    from titokctl.jobs.evaluate.probe import Probe

    job = Probe(data, tokenizer, validation or (), val_fraction, input, penalty, skip_bad)
    chosen = options.choices(
        split,
        classes,
        sort=sort,
        image_key=image_key,
        image_column=image_column,
        label_key=label_key,
        label_column=label_column,
    )
    job = replace(job, choices=chosen)
    result = perform(job, Surroundings(quiet, as_json, runs_dir=runs_dir, machine=Machine(device, gpus, procs)))
    if place().is_main:
        console.result(result, as_json, "linear probe")
