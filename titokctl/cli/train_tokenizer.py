"""`titokctl train-tokenizer`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from titokctl.cli import completion, console, options
from titokctl.cli.app import app
from titokctl.cli.options import option
from titokctl.cli.work import Machine, together


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
            "What stage decoder starts from: a run of stage proxy.",
            "RUN|FILE",
            completes=completion.tokenizers,
        ),
    ] = None,
    name: options.RunName = None,
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

    The run lives in <runs>/tokenizer (a VQGAN's in <runs>/proxy); run the same command again to go on with a stopped
    one. Stage proxy takes the newest fitting VQGAN there, stage decoder the newest fitting run of stage proxy.
    """
    from titokctl.config import recipe_files

    flags = [f"{field}={json.dumps(value)}" for field, value in (("proxy", proxy), ("init", init)) if value is not None]
    resolved = recipe_files.load(recipe, "tokenizer", [*(overrides or ()), *flags])
    with together(Machine(device, gpus, procs, nodes, node_rank, endpoint), quiet, dry_run) as work:
        from titokctl.distributed.launch import processes_here
        from titokctl.formats.run_folder import runs_root
        from titokctl.jobs.train.tokenizer import plan_training
        from titokctl.jobs.train.tokenizer import train_tokenizer as job

        if dry_run:
            plan, run = plan_training(
                data,
                resolved,
                Path(recipe).stem,
                runs_root(runs_dir),
                validation=validation or (),
                name=name,
                overwrite=overwrite,
                processes=processes_here(gpus, procs) * nodes,
                progress=work.progress,
            )
            lines = (
                "dry run: nothing was written",
                run.in_words(),
                f"{plan['images']:,} images, {plan['held_out']:,} held out",
                f"sees {plan['images_seen']:,} images, which is {plan['epochs']:,.1f} epochs",
            )
            console.recipe(resolved, {**plan, "run": run}, lines, as_json)
            return
        result = job(
            data,
            resolved,
            Path(recipe).stem,
            runs_root(runs_dir),
            validation=validation or (),
            name=name,
            overwrite=overwrite,
            device=work.device,
            progress=work.progress,
            stop=work.stop,
            group=work.group,
        )
    if work.group.is_main:
        console.result(result, as_json, "trained tokenizer")
