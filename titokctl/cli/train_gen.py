"""`titokctl train-gen`."""

from pathlib import Path
from typing import Annotated

import typer

from titokctl.cli import console
from titokctl.cli.options import Json, Overrides, Overwrite, Quiet, RunsDir

EXAMPLE = "Example: titokctl train-gen tokens.h5"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("train-gen", epilog=EXAMPLE)(train_gen)


def train_gen(
    cache: Annotated[Path, typer.Argument(metavar="TOKENS", help="A token cache made by titokctl tokenize.")],
    recipe: Annotated[
        str | None, typer.Option("--recipe", metavar="NAME|FILE", help="By default the one that fits the cache.")
    ] = None,
    overrides: Overrides = None,
    validation: Annotated[
        Path | None, typer.Option("--val", metavar="TOKENS", help="A cache of held-out images, for the held-out loss.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the run's folder.")] = None,
    device: Annotated[str | None, typer.Option("--device", help="cpu or cuda; the best there is by default.")] = None,
    overwrite: Overwrite = False,
    runs_dir: RunsDir = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a MaskGIT generator on cached tokens.

    The run lives in <runs>/generator; run the same command again to go on with a stopped one.
    """
    from titokctl.distributed.stop import StopRequest
    from titokctl.formats.run_folder import runs_root
    from titokctl.jobs.train_generator import train_generator
    from titokctl.models.device import best_device

    with StopRequest() as stop:
        result = train_generator(
            cache,
            recipe,
            runs_root(runs_dir),
            overrides=overrides or (),
            validation=validation,
            name=name,
            overwrite=overwrite,
            device=device or best_device(),
            progress=console.progress(quiet),
            stop=stop,
        )
    console.result(result, as_json, "trained generator")
