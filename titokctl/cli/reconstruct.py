"""`titokctl reconstruct`."""

from pathlib import Path
from typing import Annotated

import typer

from titokctl.cli import console, options
from titokctl.cli.app import app
from titokctl.cli.options import option
from titokctl.cli.work import alone


@app.command(epilog="Example: titokctl reconstruct imagenet/val/ -n 1000 -o reconstructed/")
def reconstruct(
    data: Annotated[list[str], typer.Argument(metavar="DATA", help="A folder of images, or tar shards.")],
    tokenizer: options.Tokenizer = None,
    output: Annotated[Path, option("--output -o", "Where picture and numbers go.", "DIR")] = Path("reconstructed"),
    num_images: Annotated[int | None, option("-n --num-images", "So many, spread over DATA; all by default.")] = None,
    features: Annotated[
        str,
        option(
            "--features",
            "Network for rFID against the originals; auto: Inception, else lite0 (no rFID), if it is here.",
            "auto|inception|lite0|none",
        ),
    ] = "auto",
    lpips: Annotated[
        bool | None, option("--lpips/--no-lpips", "By default if its weights are here.", show_default=False)
    ] = None,
    skip_bad: Annotated[bool, option("--skip-bad", "Go on without images that can't be read.")] = False,
    device: options.Device = None,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    runs_dir: options.RunsDir = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Show images above their reconstructions, and measure them: PSNR, SSIM, LPIPS, rFID, codebook use."""
    from titokctl.formats.run_folder import runs_root
    from titokctl.jobs.evaluate.reconstruct import reconstruct as job
    from titokctl.models.device import device_named

    with alone(quiet, dry_run, as_json) as (progress, stop):
        result = job(
            data,
            tokenizer,
            output,
            runs_root(runs_dir),
            num_images=num_images,
            features=features,
            lpips=lpips,
            skip_bad=skip_bad,
            overwrite=overwrite,
            device=device_named(device),
            progress=progress,
            stop=stop,
        )
    console.result(result, as_json, "reconstructions")
