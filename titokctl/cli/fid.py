"""`titokctl fid` and `titokctl stats`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from titokctl.cli import console
from titokctl.cli.options import Gpus, Json, Overwrite, Procs, Quiet, RunsDir
from titokctl.errors import UsageError

if TYPE_CHECKING:
    from titokctl.distributed.group import Group
    from titokctl.distributed.stop import StopRequest
    from titokctl.evaluation.extractors import ExtractorOptions
    from titokctl.jobs.fid import FidResult
    from titokctl.progress import Progress

    Work = tuple[Progress, StopRequest, Group]

EXAMPLE = "Example: titokctl fid samples/ --ref VIRTUAL_imagenet256_labeled.npz"
STATS_EXAMPLE = "Example: titokctl stats imagenet/ --size 256 --crop adm -o ref.npz"
_CROPS = ("center", "adm")

Features = Annotated[
    str, typer.Option("--features", metavar="inception|lite0", help="lite0 works offline, and is never called FID.")
]
InceptionWeights = Annotated[
    Path | None,
    typer.Option(
        "--inception-weights", metavar="FILE", help="By default what TITOKCTL_INCEPTION names, else torch hub's cache."
    ),
]
Tokenizer = Annotated[
    str | None,
    typer.Option("--tokenizer", metavar="NAME|PATH", help="For a token cache; by default the one it records."),
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Judge the readable images of a set that has others.")]
SaveFeatures = Annotated[
    bool, typer.Option("--save-features", help="Keep the features beside the samples, to be used again.")
]
Fast = Annotated[bool, typer.Option("--fast", help="The feature network in bf16; recorded.")]
Device = Annotated[str | None, typer.Option("--device", help="cpu or cuda; the best there is by default.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("fid", epilog=EXAMPLE)(fid)
    app.command("stats", epilog=STATS_EXAMPLE)(stats)


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
    with _working(gpus, procs, quiet) as work:
        if work is None:
            return
        progress, stop, group = work
        options = _options(features, inception_weights, fast, device, procs)
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


def stats(
    data: Annotated[list[str], typer.Argument(metavar="DATA...", help="A folder of images, shards, an .npz, ...")],
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
    with _working(gpus, procs, quiet) as work:
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
            options=_options(features, inception_weights, fast, device, procs),
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


@contextmanager
def _working(gpus: str | None, procs: int | None, quiet: bool) -> "Iterator[Work | None]":
    """What a job needs to work; None when other processes have done the work."""
    from titokctl.distributed import launch

    if launch.relaunch(gpus, procs):
        yield None
        return
    from titokctl.distributed.group import process_group
    from titokctl.distributed.stop import StopRequest
    from titokctl.models.device import best_device

    with StopRequest() as stop, process_group("cpu" if procs else best_device()) as group:
        yield console.progress(quiet or not group.is_main), stop, group


def _options(
    features: str, weights: Path | None, fast: bool, device: str | None, procs: int | None
) -> "ExtractorOptions":
    if weights is not None and features != "inception":
        raise UsageError(f"--inception-weights was given with --features {features}", "leave one of them out")
    from titokctl.evaluation.extractors import ExtractorOptions
    from titokctl.models.device import best_device

    device = device or ("cpu" if procs else best_device())
    return ExtractorOptions(device, weights, "bf16" if fast else "float32")


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
    about = [
        f"{seen['path']} ({seen['count']:,} images, pixels {seen.get('rounding', 'as they are')})",
        f"against {result.reference['path']}" + (f" (SHA-256 {sha}...)" if sha else ""),
        f"{network.get('network', network['name'])}; resize {network.get('resize', 'its own')}",
    ]
    rows = [(name, f"{value:.5g}") for name, value in result.metrics.items()]
    console.table(f"{seen['count']:,} images", ["metric", "value"], rows, "\n".join(about))
