"""`titokctl fid`."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from titokctl.cli import console, features, options
from titokctl.cli.app import app
from titokctl.cli.options import option
from titokctl.cli.work import Machine, Surroundings, perform
from titokctl.errors import UsageError
from titokctl.readable import counted

if TYPE_CHECKING:
    from titokctl.jobs.evaluate.fid import FidResult
    from titokctl.jobs.evaluate.selftest import SelftestResult

ResultT = TypeVar("ResultT")


@app.command(epilog="Example: titokctl fid samples/ --ref VIRTUAL_imagenet256_labeled.npz")
def fid(
    samples: Annotated[
        Path | None,
        typer.Argument(metavar="SAMPLES", help="Images, .npz, .npy, a token cache, statistics; else the newest set."),
    ] = None,
    reference: Annotated[
        Path | None, option("--ref", "Statistics or images; default: the images the token cache was made from.", "REF")
    ] = None,
    size: Annotated[
        int | None, option("--size", "Resize the image files of both sets to this edge in pixels.", min=1)
    ] = None,
    crop: Annotated[str, options.crop("How --size makes squares.")] = "center",
    metrics: Annotated[
        str | None, option("--metrics", "Metrics to compute; default: all that can be computed.", "fid,sfid,is,pr,kid")
    ] = None,
    is_splits: Annotated[
        int | None,
        option("--is-splits", "Splits of the Inception score; default: one for each 5,000 images.", "N", min=1),
    ] = None,
    selftest: Annotated[
        tuple[Path, Path] | None,
        option("--selftest", "Check this installation against the figures published with ADM's batch.", "NPZ REF"),
    ] = None,
    split: options.Split = None,
    image_key: options.ImageKey = None,
    image_column: options.ImageColumn = None,
    exif: features.Exif = False,
    network: features.Features = "inception",
    resize: features.Resize = "tf1",
    inception_weights: features.InceptionWeights = None,
    tokenizer: features.Tokenizer = None,
    save_features: features.SaveFeatures = False,
    skip_bad: features.SkipBad = False,
    fast: features.Fast = False,
    tf32: features.Tf32 = False,
    device: options.Device = None,
    gpus: options.Gpus = None,
    procs: options.Procs = None,
    runs_dir: options.RunsDir = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Compare samples with a reference: FID, sFID, Inception score, precision and recall, KID."""
    if selftest is not None and any(given is not None for given in (samples, reference, size, metrics, tokenizer)):
        raise UsageError(
            "--selftest takes its own samples and reference",
            "leave out SAMPLES, --ref, --size, --metrics and --tokenizer",
        )
    from titokctl.distributed.place import place
    from titokctl.jobs.evaluate.fid import Fid
    from titokctl.jobs.evaluate.selftest import Selftest
    from titokctl.jobs.machine.report import report_of

    extractor = features.network(network, inception_weights, fast, resize, tf32)
    around = Surroundings(quiet, as_json, runs_dir=runs_dir, machine=Machine(device, gpus, procs))
    if selftest is not None:
        tested = perform(Selftest(*selftest, extractor), around)
        _show_result(tested, as_json, _show_test)
        raise typer.Exit(0 if tested.passed else 1)
    names = None if metrics is None else [name.strip() for name in metrics.split(",")]
    preprocessing = features.preprocessing(size, crop, exif)
    job = Fid(samples, reference, names, extractor, preprocessing, tokenizer, skip_bad, save_features)
    job = replace(job, choices=options.choices(split, image_key=image_key, image_column=image_column), exif=exif)
    job = replace(job, splits=is_splits)
    result = perform(job, around)
    _show_result(result, as_json, _show)
    page = report_of(result.samples["path"])
    if place().is_main and page is not None:
        console.next_command("report", *page, shown=not quiet, runs_dir=runs_dir)


def _show_result(result: ResultT, as_json: bool, show: Callable[[ResultT], None]) -> None:
    """Show a result on stdout; of several processes only rank 0 does."""
    from titokctl.distributed.place import place

    if place().is_main and as_json:
        console.emit_json(result)
    elif place().is_main:
        show(result)


def _show_test(found: "SelftestResult") -> None:
    rows = [
        (c.metric, f"{c.published:g}", f"{c.tolerance:g}", f"{c.measured:.5g}", "pass" if c.passed else "FAIL")
        for c in found.checks
    ]
    console.table("selftest", ["metric", "published", "tolerance", "measured", ""], rows)


def _show(result: "FidResult") -> None:
    sha = str(result.reference.get("sha256", ""))[:12]
    network, seen = result.extractor, result.samples
    rounding, resized = seen.get("rounding", "none"), seen.get("preprocessing")
    pixels = f"resized to {resized['size']} px" if resized else "as they are" if rounding == "none" else rounding
    images = counted(seen["count"], "images") if seen["count"] else "an unknown number of images"
    about = [
        f"{seen['path']} ({images}, pixels {pixels})",
        f"against {result.reference['path']}" + (f" (SHA-256 {sha}...)" if sha else ""),
        f"{network.get('network', network['name'])}; resize {network.get('resize', 'its own')}",
    ]
    if "is_splits" in seen and any(name.startswith("is") for name in result.metrics):
        splits = counted(seen["is_splits"], "splits")
        largest = counted(seen["is_split_size"], "images")
        about.append(f"Inception score: mean of {splits} of up to {largest} in the order of the set")
    rows = [(name, f"{value:.5g}") for name, value in result.metrics.items()]
    console.table(images, ["metric", "value"], rows, "\n".join(about))
