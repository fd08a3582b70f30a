"""`titokctl reconstruct`."""

from pathlib import Path
from typing import Annotated

import typer

from titokctl.cli import console
from titokctl.cli.options import Device, Json, Overwrite, Quiet, RunsDir, Tokenizer

EXAMPLE = "Example: titokctl reconstruct imagenet/val/ -n 1000 -o reconstructed/"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=EXAMPLE)(reconstruct)


def reconstruct(
    data: Annotated[list[str], typer.Argument(metavar="DATA", help="A folder of images, or tar shards.")],
    tokenizer: Tokenizer = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where picture and numbers go.")] = Path(
        "reconstructed"
    ),
    num_images: Annotated[
        int | None, typer.Option("-n", "--num-images", help="So many, spread over DATA; all by default.")
    ] = None,
    features: Annotated[
        str,
        typer.Option(
            "--features",
            metavar="auto|inception|lite0|none",
            help="Network for rFID against the originals; auto: Inception, else lite0 (no rFID), if it is here.",
        ),
    ] = "auto",
    lpips: Annotated[
        bool | None,
        typer.Option("--lpips/--no-lpips", help="By default if its weights are here.", show_default=False),
    ] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Go on without images that can't be read.")] = False,
    device: Device = None,
    overwrite: Overwrite = False,
    runs_dir: RunsDir = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Show images above their reconstructions, and measure them: PSNR, SSIM, LPIPS, rFID, codebook use."""
    from titokctl.distributed.stop import StopRequest
    from titokctl.formats.run_folder import runs_root
    from titokctl.jobs.reconstruct import reconstruct as job
    from titokctl.models.device import device_named

    with StopRequest() as stop:
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
            progress=console.progress(quiet),
            stop=stop,
        )
    console.result(result, as_json, "reconstructions")
