"""`titokctl stats`."""

from pathlib import Path
from typing import Annotated

import typer

from titokctl.cli import console, features, options
from titokctl.cli.app import app
from titokctl.cli.options import option
from titokctl.cli.work import Machine, together


@app.command(epilog="Example: titokctl stats imagenet/ --size 256 --crop adm -o ref.npz")
def stats(
    data: Annotated[list[str], typer.Argument(metavar="DATA", help="A folder of images, shards, an .npz, ...")],
    output: Annotated[Path, option("--output -o", "The statistics to make.", "FILE")],
    size: Annotated[
        int | None, option("--size", "Bring images to this edge; by default they are taken as is.", min=1)
    ] = None,
    crop: Annotated[str, options.crop("How, with --size.")] = "center",
    network: features.Features = "inception",
    inception_weights: features.InceptionWeights = None,
    tokenizer: features.Tokenizer = None,
    skip_bad: features.SkipBad = False,
    fast: features.Fast = False,
    device: options.Device = None,
    gpus: options.Gpus = None,
    procs: options.Procs = None,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    runs_dir: options.RunsDir = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Write the statistics of a set of images, to be named as --ref of `titokctl fid`."""
    with together(Machine(device, gpus, procs), quiet, dry_run, as_json) as work:
        from titokctl.config.preprocessing import PreprocessingConfig
        from titokctl.formats.run_folder import runs_root
        from titokctl.jobs.evaluate.stats import stats as job

        result = job(
            data,
            output,
            runs_root(runs_dir),
            features=network,
            options=features.extractor_options(network, inception_weights, fast, work.device),
            preprocessing=PreprocessingConfig.model_validate({"size": size, "crop": crop}) if size else None,
            tokenizer=tokenizer,
            skip_bad=skip_bad,
            overwrite=overwrite,
            progress=work.progress,
            stop=work.stop,
            group=work.group,
        )
    if work.group.is_main:
        console.result(result, as_json, "statistics")
