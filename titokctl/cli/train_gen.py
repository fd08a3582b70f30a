"""`titokctl train-gen`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from titokctl.cli import completion, console
from titokctl.cli.options import (
    Device,
    Endpoint,
    Gpus,
    Json,
    MadeWith,
    NodeRank,
    NumNodes,
    Overrides,
    Overwrite,
    Procs,
    Quiet,
    RunsDir,
)

if TYPE_CHECKING:
    from titokctl.config.recipe import GeneratorRecipe
    from titokctl.jobs.generator_plan import GeneratorPlan

EXAMPLE = "Example: titokctl train-gen tokens.h5"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("train-gen", epilog=EXAMPLE)(train_gen)


def train_gen(
    cache: Annotated[Path, typer.Argument(metavar="TOKENS", help="A token cache made by titokctl tokenize.")],
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            metavar="NAME|FILE",
            help="By default the one that fits the cache.",
            autocompletion=completion.generator_recipes,
        ),
    ] = None,
    overrides: Overrides = None,
    validation: Annotated[
        Path | None, typer.Option("--val", metavar="TOKENS", help="A cache of held-out images, for the held-out loss.")
    ] = None,
    tokenizer: MadeWith = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the run's folder.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what a run would be and take, and leave.")] = False,
    measure: Annotated[bool, typer.Option("--measure", help="The same, with the time, from 20 steps.")] = False,
    device: Device = None,
    gpus: Gpus = None,
    procs: Procs = None,
    nodes: NumNodes = 1,
    node_rank: NodeRank = None,
    endpoint: Endpoint = None,
    overwrite: Overwrite = False,
    runs_dir: RunsDir = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a MaskGIT generator on cached tokens.

    The run lives in <runs>/generator; run the same command again to go on with a stopped one.
    """
    from titokctl.distributed import launch

    processes = launch.processes_here(gpus, procs) * nodes
    plans_only = dry_run and not measure
    if not plans_only and launch.relaunch(gpus, procs, launch.Nodes(nodes, node_rank, endpoint)):
        return
    from titokctl.distributed.group import process_group
    from titokctl.distributed.stop import StopRequest
    from titokctl.formats.run_folder import runs_root
    from titokctl.jobs.train_generator import plan_training, train_generator
    from titokctl.models.device import device_named

    device = device_named(device, "cpu" if procs else None)
    with StopRequest() as stop, process_group(device) as group:
        progress = console.progress(quiet or not group.is_main)
        if dry_run or measure:
            resolved, plan = plan_training(
                cache,
                recipe,
                overrides=overrides or (),
                processes=max(processes, group.world_size),
                measured=measure,
                device=device,
                progress=progress,
                group=group,
            )
            if group.is_main:
                show_plan(resolved, plan, as_json)
            return
        result = train_generator(
            cache,
            recipe,
            runs_root(runs_dir),
            overrides=overrides or (),
            validation=validation,
            name=name,
            overwrite=overwrite,
            tokenizer=tokenizer,
            device=device,
            progress=progress,
            stop=stop,
            group=group,
        )
        if group.is_main:
            console.result(result, as_json, "trained generator")


def show_plan(recipe: GeneratorRecipe, plan: GeneratorPlan, as_json: bool) -> None:
    """The recipe as YAML with the plan in comments above, so that the output is a recipe; or both as JSON."""
    from dataclasses import asdict

    from titokctl.config.recipe_files import to_yaml

    if as_json:
        console.emit_json({"plan": asdict(plan), "recipe": recipe.model_dump(mode="json")})
        return
    print("\n".join(f"# {line}" for line in _plan_lines(plan)))
    print(to_yaml(recipe), end="")


def _plan_lines(plan: GeneratorPlan) -> list[str]:
    from titokctl.progress import duration

    lines = [
        f"{plan.recipe}: {plan.parameters / 1e6:,.1f} M parameters",
        f"sees {plan.images:,} images ({plan.tokens:,} tokens), which is {plan.epochs:,.1f} epochs",
        f"{plan.operations:.2g} operations (6 x parameters x positions x images)",
        f"about {plan.memory_gb:,.3g} GB of memory a process",
        f"{plan.processes} processes with {plan.images_per_process:,} images a step each",
    ]
    if plan.images_per_s is not None and plan.seconds is not None:
        lines.append(f"{plan.images_per_s:,.1f} images/s measured: {duration(plan.seconds)} for the whole run")
    return lines
