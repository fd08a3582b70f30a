"""`titokctl reproduce`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from titokctl.cli import completion, console
from titokctl.cli.features import Features, InceptionWeights, extractor_options, working
from titokctl.cli.options import Device, Gpus, Json, Procs, Quiet, RunsDir

if TYPE_CHECKING:
    from titokctl.jobs.reproduce import Reproduction

EXAMPLE = "Example: titokctl reproduce titok-l-32 --ref VIRTUAL_imagenet256_labeled.npz"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("reproduce", epilog=EXAMPLE)(reproduce)


def reproduce(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="What was published: titok-l-32, titok-b-64 or titok-s-128.",
            autocompletion=completion.sampling_recipes,
        ),
    ],
    reference: Annotated[Path, typer.Option("--ref", metavar="REF", help="ADM's reference batch for 256 px, an .npz.")],
    num_images: Annotated[
        int, typer.Option("-n", "--num-images", help="Another number is not comparable with the published one.")
    ] = 50_000,
    features: Features = "inception",
    inception_weights: InceptionWeights = None,
    device: Device = None,
    gpus: Gpus = None,
    procs: Procs = None,
    runs_dir: RunsDir = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Sample with released weights and their published settings, and compare the FID with the published one.

    Run the same command again to go on with what was stopped. The exit code is 1 when the FID is outside the interval.
    """
    with working(gpus, procs, quiet) as work:
        if work is None:
            return
        from titokctl.formats.run_folder import runs_root
        from titokctl.jobs.reproduce import reproduce as job

        progress, stop, group = work
        found = job(
            name,
            reference,
            runs_root(runs_dir),
            num_images=num_images,
            features=features,
            options=extractor_options(features, inception_weights, False, device, procs),
            progress=progress,
            stop=stop,
            group=group,
        )
        if group.is_main and as_json:
            from dataclasses import asdict

            console.emit_json(asdict(found))
        elif group.is_main:
            _show(found)
        if found.agrees is False:
            raise typer.Exit(1)


def _show(found: "Reproduction") -> None:
    error = f" +- {found.standard_error:.2g}" if found.standard_error is not None else ""
    verdict = {True: "agrees", False: "does NOT agree", None: "not comparable"}[found.agrees]
    rows = {
        "published FID": f"{found.published:g} (quoted), agreed interval {found.lowest:.2f} to {found.highest:.2f}",
        f"measured {found.metric}": f"{found.measured:.4g}{error}, {found.images:,} images",
        "verdict": ": ".join([verdict, "; ".join(found.reasons)]) if found.reasons else verdict,
        "samples": found.samples,
    }
    console.pairs(found.name, rows)
