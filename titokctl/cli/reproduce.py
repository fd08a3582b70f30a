"""`titokctl reproduce`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from titokctl.cli import completion, console, features, options
from titokctl.cli.app import app
from titokctl.cli.options import option
from titokctl.cli.work import Machine, Surroundings, perform

if TYPE_CHECKING:
    from titokctl.jobs.evaluate.reproduce import Reproduction


@app.command(epilog="Example: titokctl reproduce titok-l-32 --ref VIRTUAL_imagenet256_labeled.npz")
def reproduce(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="The published model: titok-l-32, titok-b-64 or titok-s-128.",
            autocompletion=completion.sampling_recipes,
        ),
    ],
    reference: Annotated[Path, option("--ref", "ADM's reference batch for 256 px, an .npz.", "REF")],
    num_images: Annotated[
        int, option("-n --num-images", "Number of images; scores of other numbers are not comparable.")
    ] = 50_000,
    precision: Annotated[
        Literal["float32", "tf32", "bf16", "fp16"] | None,
        option(
            "--precision",
            "Of generator and decoder; default: TF32 on a GPU, as published. 16-bit results are not comparable.",
            "float32|tf32|bf16|fp16",
        ),
    ] = None,
    network: features.Features = "inception",
    inception_weights: features.InceptionWeights = None,
    device: options.Device = None,
    gpus: options.Gpus = None,
    procs: options.Procs = None,
    dry_run: options.DryRun = False,
    runs_dir: options.RunsDir = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Sample with released weights and their published settings, and compare the FID with the published one.

    Run the same command again to resume it. The exit code is 1 when the FID is outside the interval.
    """
    from titokctl.distributed.place import place
    from titokctl.jobs.evaluate.reproduce import Reproduce

    job = Reproduce(name, reference, num_images, features.network(network, inception_weights), precision)
    found = perform(job, Surroundings(quiet, as_json, dry_run, runs_dir, machine=Machine(device, gpus, procs)))
    if place().is_main and as_json:
        console.emit_json(found)
    elif place().is_main:
        _show(found)
    if found.agrees is False:
        raise typer.Exit(1)


def _show(found: "Reproduction") -> None:
    error = f" +- {found.standard_error:.2g}" if found.standard_error is not None else ""
    verdict = {True: "agrees", False: "does NOT agree", None: "not comparable"}[found.agrees]
    rows = {
        "published FID": f"{found.published:g} (quoted), agreed interval {found.lowest:.2f} to {found.highest:.2f}",
        f"measured {found.metric}": f"{found.measured:.4g}{error}, {found.images:,} images in {found.precision}",
        "verdict": ": ".join([verdict, "; ".join(found.reasons)]) if found.reasons else verdict,
        "samples": found.samples,
    }
    console.pairs(found.name, rows)
