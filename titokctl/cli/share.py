"""`titokctl push` and `titokctl pull`."""

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from titokctl.cli import completion, console, options
from titokctl.cli.app import app
from titokctl.cli.options import option
from titokctl.cli.work import Surroundings, context


@app.command(epilog="Example: titokctl push generator/tiny-1 alice/shapes-64 --license mit")
def push(
    product: Annotated[
        str, typer.Argument(metavar="RUN|FILE|TOKENS", help="What to share.", autocompletion=completion.runs)
    ],
    repository: Annotated[str, typer.Argument(metavar="USER/NAME", help="The repository.")],
    private: Annotated[bool, option("--private", "Make a new repository private.")] = False,
    license: Annotated[
        str | None, option("--license", "License for the repository's card, e.g. apache-2.0 or other.", "NAME")
    ] = None,
    overwrite: Annotated[bool, option("--overwrite", "Replace another product, which stays in the history.")] = False,
    dry_run: options.DryRun = False,
    runs_dir: options.RunsDir = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Share a tokenizer, a generator or a token cache on the Hugging Face Hub, with a card made from its lineage.

    No path of this machine, and no name of it or of its user, is sent. --dry-run prints the card.
    """
    from titokctl.jobs.share.push import Push

    _hide_bars(quiet)
    job = Push(product, repository, private, license, overwrite)
    with context(Surroundings(quiet, as_json, runs_dir=runs_dir)) as found:
        if not dry_run:
            console.result(job.run(found), as_json, "shared product")
            console.next_command("pull", repository, shown=not quiet, runs_dir=runs_dir)
            return
        plan = job.plan(found)
    if as_json:
        console.emit_json(plan)
        return
    console.pairs("dry run: nothing was sent", {name: value for name, value in asdict(plan).items() if name != "card"})
    print(plan.card, end="")


@app.command(epilog="Example: titokctl pull alice/shapes-64")
def pull(
    repository: Annotated[str, typer.Argument(metavar="USER/NAME[@REVISION]", help="A repository that `push` made.")],
    name: Annotated[str | None, option("--name", "Name of the new run, for weights; default: NAME.")] = None,
    output: Annotated[
        Path | None, option("-o --output", "The new file, for a token cache; default: NAME.h5.", "FILE")
    ] = None,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    runs_dir: options.RunsDir = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Fetch a shared tokenizer or generator as a run, or a shared token cache as a file. Its hashes are checked."""
    from titokctl.jobs.share.pull import Pull

    _hide_bars(quiet)
    job = Pull(repository, name, output, overwrite)
    with context(Surroundings(quiet, as_json, runs_dir=runs_dir)) as found:
        result = job.plan(found) if dry_run else job.run(found)
    console.result(result, as_json, "dry run: nothing was written" if dry_run else "fetched product")
    if dry_run:
        return
    if result.kind in ("tokenizer", "generator"):
        console.next_after_run(result.kind, result.output, shown=not quiet, runs_dir=runs_dir)
    else:
        console.next_command("train-gen", result.output, shown=not quiet, runs_dir=runs_dir)


def _hide_bars(quiet: bool) -> None:
    """Let huggingface_hub, which reads this when it is imported, show progress bars in a terminal only."""
    if quiet or not sys.stderr.isatty():
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
