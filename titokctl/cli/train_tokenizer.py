"""`titokctl train-tokenizer`."""

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated

import typer

from titokctl.cli import completion, console, options
from titokctl.cli.app import app
from titokctl.cli.options import option
from titokctl.cli.work import Machine, Surroundings, context, measured_in_words, perform
from titokctl.readable import counted

if TYPE_CHECKING:
    from titokctl.jobs.train.tokenizer import ImagesSeen
    from titokctl.training.run_setup import TrainingPlan


@app.command(epilog="Example: titokctl train-tokenizer shards/ --recipe tiny --val heldout/")
def train_tokenizer(
    data: Annotated[list[str], typer.Argument(metavar="DATA", help="Images or shards: folders, files or URLs.")],
    recipe: Annotated[
        str, option("--recipe", "What to train.", "NAME|FILE", completes=completion.tokenizer_recipes)
    ] = "tiny",
    overrides: options.Overrides = None,
    validation: Annotated[list[str] | None, option("--val", "Held-out images or shards; repeatable.")] = None,
    proxy: Annotated[
        str | None,
        option("--proxy", "The VQGAN of the two-stage recipes.", "RUN|FILE|NAME", completes=completion.proxies),
    ] = None,
    init: Annotated[
        str | None,
        option(
            "--init",
            "Weights to start from; tensors that fit are taken. Stage decoder: a run of stage proxy.",
            "RUN|FILE|NAME",
            completes=completion.tokenizers,
        ),
    ] = None,
    max_rejected: options.MaxRejected = None,
    split: options.Split = None,
    image_key: options.ImageKey = None,
    image_column: options.ImageColumn = None,
    exif: options.Exif = None,
    name: options.RunName = None,
    measure: options.Measure = False,
    profile: options.Profile = False,
    device: options.Device = None,
    gpus: options.Gpus = None,
    procs: options.Procs = None,
    nodes: options.NumNodes = 1,
    node_rank: options.NodeRank = None,
    endpoint: options.Endpoint = None,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    runs_dir: options.RunsDir = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Train a tokenizer, in one stage or in two, on images or WebDataset shards.

    The run is a folder in <runs>/tokenizer (for a VQGAN, <runs>/proxy). To resume a stopped run, run the same command
    again. Stage proxy takes the newest fitting VQGAN there, stage decoder the newest fitting run of stage proxy.
    """
    from titokctl.distributed.launch import processes_here
    from titokctl.distributed.place import place
    from titokctl.jobs.train.tokenizer import TrainTokenizer

    chosen = options.choices(split, image_key=image_key, image_column=image_column)
    given = TrainTokenizer(data, recipe, overrides or (), validation or (), proxy, init, name, overwrite)
    request = replace(given, choices=chosen, exif=exif, max_rejected=max_rejected, measure=measure, profile=profile)
    machine = Machine(device, gpus, procs, nodes, node_rank, endpoint)
    # A measurement needs the processes that a dry run leaves out.
    around = Surroundings(quiet, as_json, dry_run and not measure, runs_dir, machine=machine)
    if dry_run or measure:
        with context(around) as found:
            processes = max(processes_here(gpus, procs, dry=not measure) * nodes, found.group.world_size)
            plan = replace(request, processes=processes).plan(found)
        if place().is_main:
            _show(plan, as_json)
        return
    result = perform(request, around)
    if place().is_main:
        console.result(result, as_json, "trained tokenizer")
        if result.encoder_sha256 is not None:
            judged = validation or data[:1]
            console.next_command("reconstruct", *judged, "--tokenizer", result.run, shown=not quiet, runs_dir=runs_dir)


def _show(plan: "TrainingPlan[ImagesSeen]", as_json: bool) -> None:
    cost = plan.cost
    lines = [
        "dry run: nothing was written",
        plan.run.in_words(),
        f"{counted(cost.images, 'images')}, {cost.held_out:,} held out",
        f"sees {counted(cost.images_seen, 'images')}, which is {cost.epochs:,.1f} epochs",
    ]
    if cost.images_per_s is not None and cost.seconds is not None:
        lines.append(measured_in_words(cost.images_per_s, cost.seconds))
    console.recipe(plan.recipe, asdict(cost) | {"run": plan.run}, lines, as_json)
