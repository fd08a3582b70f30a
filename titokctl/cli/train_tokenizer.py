"""`titokctl train-tokenizer`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from titokctl.cli import completion, console
from titokctl.cli.options import (
    Device,
    Endpoint,
    Gpus,
    Json,
    NodeRank,
    NumNodes,
    Overrides,
    Overwrite,
    Procs,
    Quiet,
    RunsDir,
)

EXAMPLE = "Example: titokctl train-tokenizer shards/ --recipe tiny --val heldout/"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("train-tokenizer", epilog=EXAMPLE)(train_tokenizer)


def train_tokenizer(
    data: Annotated[list[str], typer.Argument(metavar="DATA", help="Images or shards: folders, files or URLs.")],
    recipe: Annotated[
        str,
        typer.Option(
            "--recipe", metavar="NAME|FILE", help="What to train.", autocompletion=completion.tokenizer_recipes
        ),
    ] = "tiny",
    overrides: Overrides = None,
    validation: Annotated[
        list[str] | None, typer.Option("--val", help="Held-out images or shards; repeatable.")
    ] = None,
    proxy: Annotated[
        str | None,
        typer.Option(
            "--proxy",
            metavar="RUN|FILE|NAME",
            help="The VQGAN of the two-stage recipes.",
            autocompletion=completion.proxies,
        ),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            "--init",
            metavar="RUN|FILE",
            help="What stage decoder starts from: a run of stage proxy.",
            autocompletion=completion.tokenizers,
        ),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the run's folder.")] = None,
    device: Device = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved recipe and leave.")] = False,
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
    """Train a tokenizer, in one stage or in two, on images or WebDataset shards.

    The run lives in <runs>/tokenizer (a VQGAN's in <runs>/proxy); run the same command again to go on with a stopped
    one. Stage proxy takes the newest fitting VQGAN there, stage decoder the newest fitting run of stage proxy.
    """
    from titokctl.config import recipe_files

    flags = [f"{field}={json.dumps(value)}" for field, value in (("proxy", proxy), ("init", init)) if value is not None]
    resolved = recipe_files.load(recipe, "tokenizer", [*(overrides or ()), *flags])
    if dry_run:
        print(recipe_files.to_yaml(resolved), end="")
        return
    from titokctl.distributed import launch

    if launch.relaunch(gpus, procs, launch.Nodes(nodes, node_rank, endpoint)):
        return
    from titokctl.distributed.group import process_group
    from titokctl.distributed.stop import StopRequest
    from titokctl.formats.run_folder import runs_root
    from titokctl.jobs.train_tokenizer import train_tokenizer as job
    from titokctl.models.device import device_named

    device = device_named(device, "cpu" if procs else None)
    with StopRequest() as stop, process_group(device) as group:
        result = job(
            data,
            resolved,
            Path(recipe).stem,
            runs_root(runs_dir),
            validation=validation or (),
            name=name,
            overwrite=overwrite,
            device=device,
            progress=console.progress(quiet or not group.is_main),
            stop=stop,
            group=group,
        )
        if group.is_main:
            console.result(result, as_json, "trained tokenizer")
