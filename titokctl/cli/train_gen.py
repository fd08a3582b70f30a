"""`titokctl train-gen`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from titokctl.cli import completion, console, options
from titokctl.cli.app import app
from titokctl.cli.options import option
from titokctl.cli.work import Machine, together

if TYPE_CHECKING:
    from titokctl.jobs.train.generator_plan import GeneratorPlan


@app.command(epilog="Example: titokctl train-gen tokens.h5")
def train_gen(
    cache: Annotated[Path, typer.Argument(metavar="TOKENS", help="A token cache made by titokctl tokenize.")],
    recipe: Annotated[
        str | None,
        option(
            "--recipe", "By default the one that fits the cache.", "NAME|FILE", completes=completion.generator_recipes
        ),
    ] = None,
    overrides: options.Overrides = None,
    validation: Annotated[
        Path | None, option("--val", "A cache of held-out images, for the held-out loss.", "TOKENS")
    ] = None,
    tokenizer: options.MadeWith = None,
    name: options.RunName = None,
    measure: Annotated[bool, option("--measure", "As --dry-run, with the time, from 20 steps.")] = False,
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
    """Train a MaskGIT generator on cached tokens.

    The run lives in <runs>/generator; run the same command again to go on with a stopped one.
    """
    machine = Machine(device, gpus, procs, nodes, node_rank, endpoint)
    with together(machine, quiet, dry_run and not measure) as work:
        from titokctl.distributed.launch import processes_here
        from titokctl.formats.run_folder import runs_root
        from titokctl.jobs.train.generator import plan_training, train_generator

        if dry_run or measure:
            resolved, plan, run = plan_training(
                cache,
                recipe,
                runs_root(runs_dir),
                overrides=overrides or (),
                validation=validation,
                name=name,
                overwrite=overwrite,
                processes=max(processes_here(gpus, procs) * nodes, work.group.world_size),
                measured=measure,
                device=work.device,
                progress=work.progress,
                group=work.group,
            )
            if work.group.is_main:
                lines = ["dry run: nothing was written", run.in_words(), *_plan_lines(plan)]
                console.recipe(resolved, asdict(plan) | {"run": run}, lines, as_json)
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
            device=work.device,
            progress=work.progress,
            stop=work.stop,
            group=work.group,
        )
    if work.group.is_main:
        console.result(result, as_json, "trained generator")


def _plan_lines(plan: "GeneratorPlan") -> list[str]:
    from titokctl.readable import duration

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
