"""`titokctl fid` and `titokctl stats`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from titokctl.cli import console
from titokctl.cli.options import Json, Overwrite, Quiet, RunsDir
from titokctl.errors import UsageError

if TYPE_CHECKING:
    from titokctl.evaluation.extractors import ExtractorOptions

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
    features: Features = "inception",
    inception_weights: InceptionWeights = None,
    tokenizer: Tokenizer = None,
    skip_bad: SkipBad = False,
    fast: Fast = False,
    device: Device = None,
    runs_dir: RunsDir = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compare samples with a reference: FID, sFID, Inception score, precision and recall, KID."""
    from titokctl.distributed.stop import StopRequest
    from titokctl.formats.run_folder import runs_root
    from titokctl.jobs.fid import fid as job

    with StopRequest() as stop:
        result = job(
            samples,
            reference,
            runs_root(runs_dir),
            metrics=None if metrics is None else [name.strip() for name in metrics.split(",")],
            features=features,
            options=_options(features, inception_weights, fast, device),
            tokenizer=tokenizer,
            skip_bad=skip_bad,
            progress=console.progress(quiet),
            stop=stop,
        )
    if as_json:
        from dataclasses import asdict

        console.emit_json(asdict(result))
        return
    about = f"{result.samples['path']} against {result.reference['path']}, {result.extractor['network']}"
    rows = [(name, f"{value:.5g}") for name, value in result.metrics.items()]
    console.table(f"{result.samples['count']:,} images", ["metric", "value"], rows, about)


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
    overwrite: Overwrite = False,
    runs_dir: RunsDir = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write the statistics of a set of images, to be named as --ref of `titokctl fid`."""
    if crop not in _CROPS:
        raise UsageError(f"there is no crop named {crop!r}", f"one of: {', '.join(_CROPS)}")
    from titokctl.config.preprocessing import PreprocessingConfig
    from titokctl.distributed.stop import StopRequest
    from titokctl.formats.run_folder import runs_root
    from titokctl.jobs.fid import stats as job

    config = PreprocessingConfig.model_validate({"size": size, "crop": crop}) if size else None
    with StopRequest() as stop:
        result = job(
            data,
            output,
            runs_root(runs_dir),
            features=features,
            options=_options(features, inception_weights, fast, device),
            preprocessing=config,
            tokenizer=tokenizer,
            skip_bad=skip_bad,
            overwrite=overwrite,
            progress=console.progress(quiet),
            stop=stop,
        )
    console.result(result, as_json, "statistics")


def _options(features: str, weights: Path | None, fast: bool, device: str | None) -> "ExtractorOptions":
    if weights is not None and features != "inception":
        raise UsageError(f"--inception-weights was given with --features {features}", "leave one of them out")
    from titokctl.evaluation.extractors import ExtractorOptions
    from titokctl.models.device import best_device

    return ExtractorOptions(device or best_device(), weights, "bf16" if fast else "float32")
