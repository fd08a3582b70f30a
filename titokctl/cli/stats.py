"""`titokctl stats`."""

from pathlib import Path
from typing import Annotated

import typer

from titokctl.cli import console
from titokctl.cli.features import (
    Fast,
    Features,
    InceptionWeights,
    SkipBad,
    Tokenizer,
    extractor_options,
    working,
)
from titokctl.cli.options import Device, Gpus, Json, Overwrite, Procs, Quiet, RunsDir
from titokctl.errors import UsageError

EXAMPLE = "Example: titokctl stats imagenet/ --size 256 --crop adm -o ref.npz"
_CROPS = ("center", "adm")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("stats", epilog=EXAMPLE)(stats)


def stats(
    data: Annotated[list[str], typer.Argument(metavar="DATA", help="A folder of images, shards, an .npz, ...")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The statistics to make.")],
    size: Annotated[
        int | None, typer.Option("--size", min=1, help="Bring images to this edge; by default they are taken as is.")
    ] = None,
    crop: Annotated[str, typer.Option("--crop", metavar="center|adm", help="How, with --size.")] = "center",
    features: Features = "inception",
    inception_weights: InceptionWeights = None,
    tokenizer: Tokenizer = None,
    skip_bad: SkipBad = False,
    fast: Fast = False,
    device: Device = None,
    gpus: Gpus = None,
    procs: Procs = None,
    overwrite: Overwrite = False,
    runs_dir: RunsDir = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write the statistics of a set of images, to be named as --ref of `titokctl fid`."""
    if crop not in _CROPS:
        raise UsageError(f"there is no crop named {crop!r}", f"one of: {', '.join(_CROPS)}")
    with working(gpus, procs, quiet) as work:
        if work is None:
            return
        from titokctl.config.preprocessing import PreprocessingConfig
        from titokctl.formats.run_folder import runs_root
        from titokctl.jobs.stats import stats as job

        progress, stop, group = work
        result = job(
            data,
            output,
            runs_root(runs_dir),
            features=features,
            options=extractor_options(features, inception_weights, fast, device, procs),
            preprocessing=PreprocessingConfig.model_validate({"size": size, "crop": crop}) if size else None,
            tokenizer=tokenizer,
            skip_bad=skip_bad,
            overwrite=overwrite,
            progress=progress,
            stop=stop,
            group=group,
        )
        if group.is_main:
            console.result(result, as_json, "statistics")
