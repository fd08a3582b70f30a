"""`titokctl fid`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from titokctl.cli import console
from titokctl.cli.features import (
    Fast,
    Features,
    InceptionWeights,
    SaveFeatures,
    SkipBad,
    Tokenizer,
    extractor_options,
    working,
)
from titokctl.cli.options import Device, Gpus, Json, Procs, Quiet, RunsDir
from titokctl.errors import UsageError

if TYPE_CHECKING:
    from titokctl.cli.features import Work
    from titokctl.evaluation.extractors import ExtractorOptions
    from titokctl.jobs.fid import FidResult

EXAMPLE = "Example: titokctl fid samples/ --ref VIRTUAL_imagenet256_labeled.npz"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("fid", epilog=EXAMPLE)(fid)


def fid(
    samples: Annotated[
        str | None,
        typer.Argument(metavar="SAMPLES", help="An .npz, images, a token cache or a sample set; else the newest."),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option("--ref", metavar="REF", help="Statistics or images; by default what the token cache was made of."),
    ] = None,
    metrics: Annotated[
        str | None, typer.Option("--metrics", metavar="fid,sfid,is,pr,kid", help="All that can be computed by default.")
    ] = None,
    selftest: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="NPZ REF", help="Check this installation against the figures published with ADM's batch."),
    ] = None,
    features: Features = "inception",
    inception_weights: InceptionWeights = None,
    tokenizer: Tokenizer = None,
    save_features: SaveFeatures = False,
    skip_bad: SkipBad = False,
    fast: Fast = False,
    device: Device = None,
    gpus: Gpus = None,
    procs: Procs = None,
    runs_dir: RunsDir = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compare samples with a reference: FID, sFID, Inception score, precision and recall, KID."""
    if selftest is not None:
        _check_alone(samples, reference, metrics, tokenizer)
    with working(gpus, procs, quiet) as work:
        if work is None:
            return
        progress, stop, group = work
        options = extractor_options(features, inception_weights, fast, device, procs)
        if selftest is not None:
            _selftest(selftest, features, options, runs_dir, as_json, work)
            return
        from titokctl.formats.run_folder import runs_root
        from titokctl.jobs.fid import fid as job

        result = job(
            samples,
            reference,
            runs_root(runs_dir),
            metrics=None if metrics is None else [name.strip() for name in metrics.split(",")],
            features=features,
            options=options,
            tokenizer=tokenizer,
            save_features=save_features,
            skip_bad=skip_bad,
            progress=progress,
            stop=stop,
            group=group,
        )
        if group.is_main:
            _show(result, as_json)


def _check_alone(*others: str | None) -> None:
    if any(other is not None for other in others):
        raise UsageError("--selftest names its own samples and reference", "leave out the others, and --metrics")


def _selftest(
    files: tuple[Path, Path],
    features: str,
    options: "ExtractorOptions",
    runs_dir: Path | None,
    as_json: bool,
    work: "Work",
) -> None:
    from titokctl.formats.run_folder import runs_root
    from titokctl.jobs.selftest import selftest as job

    progress, stop, group = work
    root = runs_root(runs_dir)
    found = job(*files, root, features=features, options=options, progress=progress, stop=stop, group=group)
    if group.is_main and as_json:
        from dataclasses import asdict

        console.emit_json(asdict(found))
    elif group.is_main:
        rows = [
            (c.metric, f"{c.published:g}", f"{c.tolerance:g}", f"{c.measured:.5g}", "pass" if c.passed else "FAIL")
            for c in found.checks
        ]
        console.table("selftest", ["metric", "published", "tolerance", "measured", ""], rows)
    if not found.passed:
        raise typer.Exit(1)


def _show(result: "FidResult", as_json: bool) -> None:
    if as_json:
        from dataclasses import asdict

        console.emit_json(asdict(result))
        return
    sha = str(result.reference.get("sha256", ""))[:12]
    network, seen = result.extractor, result.samples
    rounding = seen.get("rounding", "none")
    about = [
        f"{seen['path']} ({seen['count']:,} images, pixels {'as they are' if rounding == 'none' else rounding})",
        f"against {result.reference['path']}" + (f" (SHA-256 {sha}...)" if sha else ""),
        f"{network.get('network', network['name'])}; resize {network.get('resize', 'its own')}",
    ]
    rows = [(name, f"{value:.5g}") for name, value in result.metrics.items()]
    console.table(f"{seen['count']:,} images", ["metric", "value"], rows, "\n".join(about))
