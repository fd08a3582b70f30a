"""`titokctl train-gen`."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from titokctl.cli import completion, console, options
from titokctl.cli.app import app
from titokctl.cli.options import option
from titokctl.cli.work import Machine, Surroundings, context, measured_in_words, perform

if TYPE_CHECKING:
    from titokctl.training.cost import GeneratorCost
    from titokctl.training.run_setup import TrainingPlan


@app.command(epilog="Example: titokctl train-gen tokens.h5")
def train_gen(
    cache: Annotated[
        Path,
        typer.Argument(metavar="TOKENS", help="A token cache made by titokctl tokenize.", callback=options.address),
    ],
    recipe: Annotated[
        str | None,
        option(
            "--recipe", "By default the one that fits the cache.", "NAME|FILE", completes=completion.generator_recipes
        ),
    ] = None,
    overrides: options.Overrides = None,
    validation: Annotated[
        Path | None,
        option("--val", "A cache of held-out images, for the held-out loss.", "TOKENS", callback=options.address),
    ] = None,
    init: Annotated[
        str | None,
        option(
            "--init",
            "Weights to start from; tensors that fit are taken.",
            "RUN|FILE|NAME",
            completes=completion.generators,
        ),
    ] = None,
    tokenizer: options.MadeWith = None,
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
    """Train a generator on cached tokens.

    The run is a folder in <runs>/generator. To resume a stopped run, run the same command again.
    """
    from titokctl.distributed.launch import processes_here
    from titokctl.distributed.place import place
    from titokctl.jobs.train.generator import TrainGenerator

    request = TrainGenerator(cache, recipe, overrides or (), validation, tokenizer, name, overwrite, measure)
    request = replace(request, init=init, profile=profile)
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
        console.result(result, as_json, "trained generator")
        console.next_command("sample", "--generator", result.run, "-n", "16", shown=not quiet, runs_dir=runs_dir)


def _show(plan: "TrainingPlan[GeneratorCost]", as_json: bool) -> None:
    lines = ["dry run: nothing was written", plan.run.in_words(), *_plan_lines(plan.cost)]
    console.recipe(plan.recipe, asdict(plan.cost) | {"run": plan.run}, lines, as_json)


def _plan_lines(plan: "GeneratorCost") -> list[str]:
    from titokctl.readable import counted

    lines = [
        f"{plan.recipe}: {plan.parameters / 1e6:,.1f} M parameters",
        f"sees {counted(plan.images, 'images')} ({plan.tokens:,} tokens), which is {plan.epochs:,.1f} epochs",
        f"{plan.operations:.2g} operations (6 x parameters x positions x images)",
        f"about {plan.memory_gb:,.3g} GB of memory per process",
        f"{counted(plan.processes, 'processes')} with {plan.images_per_process:,} images per step each",
    ]
    if plan.images_per_s is not None and plan.seconds is not None:
        lines.append(measured_in_words(plan.images_per_s, plan.seconds))
    return lines
