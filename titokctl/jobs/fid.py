"""`titokctl fid`: how close a set of samples is to a reference; `titokctl stats`: statistics of a reference set."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.distributed.stop import StopRequest
from titokctl.errors import UsageError, UserError
from titokctl.evaluation.extractors import Extractor, ExtractorOptions, open_extractor
from titokctl.evaluation.feature_set import FeatureSet
from titokctl.evaluation.metrics import METRICS, Numbers, compare, lacking
from titokctl.formats.atomic import write_json
from titokctl.formats.run_folder import versions
from titokctl.formats.statistics import file_sha256, write_statistics
from titokctl.jobs.chain import pick_samples
from titokctl.jobs.feature_pass import KEEP_OF_REFERENCE, KEEP_OF_SAMPLES, measure, statistics_about, to_statistics
from titokctl.jobs.image_sets import ImageSet, Opening, open_images
from titokctl.jobs.reference import Reference, find_reference
from titokctl.progress import Progress

FORMAT = "titokctl/evaluation"
FORMAT_VERSION = 1
USUAL_COUNT = 50_000


@dataclass(frozen=True)
class FidResult:
    """Numbers by name, what was compared, and what to beware of."""

    metrics: Numbers
    samples: dict[str, Any]
    reference: dict[str, Any]
    extractor: dict[str, Any]
    warnings: list[str]
    kept_in: str | None


@dataclass(frozen=True)
class StatsResult:
    """The statistics file that was made."""

    output: str
    images: int
    features: str
    sha256: str


def fid(
    samples: str | None,
    reference: str | None,
    runs: Path,
    *,
    metrics: Sequence[str] | None = None,
    features: str = "inception",
    options: ExtractorOptions | None = None,
    tokenizer: str | None = None,
    skip_bad: bool = False,
    progress: Progress,
    stop: StopRequest,
) -> FidResult:
    """Compare samples with a reference.

    Args:
        samples: an .npz, a folder of images, shards, a token cache, or a sample set; None for the newest one.
        reference: statistics or images; None for what the samples' token cache was made from.
        runs: the runs folder; statistics of image references are kept in it.
        metrics: of METRICS; None for all that can be computed.
        features: name of the feature network.
        options: its device, weights and precision.
        tokenizer: for a token cache whose tokenizer is not in the runs folder.
        skip_bad: judge the readable images of a set that has others.

    Raises: UserError or UsageError for what can't be compared; Stopped after a signal.
    """
    check_metrics(metrics)
    extractor = open_extractor(features, options)
    _check_network_has(metrics, extractor)
    opening = Opening(runs, progress.say, tokenizer, None, extractor.device)
    images = open_images(pick_samples(samples, runs, progress.say), opening)
    given = Path(reference) if reference is not None else None
    wanted = tuple(metrics) if metrics else METRICS
    found = find_reference(
        given, images, extractor, bool({"pr", "kid"} & set(wanted)), opening, progress, stop, skip_bad
    )
    measured = measure(images, extractor, KEEP_OF_SAMPLES, str(images.path), progress, stop, skip_bad)
    chosen = _computable(wanted, metrics is not None, measured, found.features, progress)
    numbers = compare(measured, found.features, chosen, extractor.metric_name)
    cautions = warnings_about(images, measured, found, extractor)
    for caution in cautions:
        progress.say(f"warning: {caution}")
    return _kept(images, numbers, measured, found, extractor, cautions, progress)


def stats(
    data: Sequence[str],
    output: Path,
    runs: Path,
    *,
    features: str = "inception",
    options: ExtractorOptions | None = None,
    preprocessing: PreprocessingConfig | None = None,
    tokenizer: str | None = None,
    skip_bad: bool = False,
    overwrite: bool = False,
    progress: Progress,
    stop: StopRequest,
) -> StatsResult:
    """Write the statistics of a set of images.

    Args:
        data: one .npz, folder, token cache or sample set, or any number of shards.
        preprocessing: how files become squares; None takes them as they are, which must be of one size.

    Raises: UserError when the output exists or the images can't be used; Stopped after a signal.
    """
    if output.suffix != ".npz":
        raise UsageError(f"-o {output} is no .npz", "statistics are kept as .npz, e.g. -o ref.npz")
    if output.exists() and not overwrite:
        raise UserError(f"{output} exists already", "choose another -o, or replace it with --overwrite")
    extractor = open_extractor(features, options)
    images = open_images(Path(data[0]), Opening(runs, progress.say, tokenizer, preprocessing, extractor.device), data)
    found = measure(images, extractor, KEEP_OF_REFERENCE, str(images.path), progress, stop, skip_bad)
    write_statistics(output, to_statistics(found, statistics_about(images, extractor)))
    return StatsResult(str(output), found.count, extractor.name, file_sha256(output))


def check_metrics(metrics: Sequence[str] | None) -> None:
    """Raise UsageError for names that are no metrics."""
    unknown = [name for name in metrics or () if name not in METRICS]
    if unknown or (metrics is not None and not metrics):
        named = repr(unknown[0]) if unknown else "''"
        raise UsageError(f"there is no metric named {named}", f"any of: {','.join(METRICS)}")


def warnings_about(images: ImageSet, measured: FeatureSet, reference: Reference, extractor: Extractor) -> list[str]:
    """What a reader of the numbers must know."""
    name, width = extractor.metric_name("fid"), extractor.widths["pool"]
    found = []
    if measured.count <= width:
        found.append(
            f"{measured.count:,} images are fewer than the {width:,} features: {name} says little, look at "
            f"{extractor.metric_name('kid')}"
        )
    elif measured.count < USUAL_COUNT:
        found.append(f"{measured.count:,} images: {name} is larger than it would be for {USUAL_COUNT:,}")
    if images.labels is not None and _unbalanced(images.labels):
        found.append("the classes are not equally frequent among the samples")
    if images.lossy:
        found.append(f"{images.lossy:,} images come from lossy files (JPEG or WebP), which shifts every metric")
    if reference.image_size and images.image_size and reference.image_size != images.image_size:
        found.append(f"the samples are of {images.image_size} px, the reference of {reference.image_size} px")
    if images.about.get("kind") == "reconstructions" and images.origin and "fingerprint" not in reference.about:
        found.append("these are reconstructions: rFID compares them with their own originals, not with training data")
    recorded = reference.about.get("extractor")
    if recorded and recorded != extractor.description:
        found.append("the reference statistics were computed with other settings of the feature network")
    return found


def _unbalanced(labels: np.ndarray) -> bool:
    present = labels[labels >= 0]
    counts = np.bincount(present)[np.unique(present)] if len(present) else np.zeros(1)
    return bool(counts.max() - counts.min() > 1)


def _check_network_has(metrics: Sequence[str] | None, extractor: Extractor) -> None:
    needs = {"sfid": "spatial", "is": "logits"}
    for metric in metrics or ():
        if metric in needs and needs[metric] not in extractor.widths:
            raise UsageError(f"--metrics {metric} needs Inception; {extractor.name} has no {needs[metric]} features")


def _computable(
    wanted: Sequence[str], named: bool, samples: FeatureSet, reference: FeatureSet, progress: Progress
) -> list[str]:
    """The metrics that the sets allow. Raises UserError when one that was asked for by name is not among them."""
    chosen = []
    for metric in wanted:
        reason = lacking(metric, samples, reference)
        if not reason:
            chosen.append(metric)
        elif named:
            raise UserError(f"{metric} can't be computed: {reason}")
        else:
            progress.say(f"no {metric}: {reason}")
    return chosen


def _kept(
    images: ImageSet,
    numbers: Numbers,
    measured: FeatureSet,
    reference: Reference,
    extractor: Extractor,
    cautions: list[str],
    progress: Progress,
) -> FidResult:
    """The result, also written beside the samples where that is allowed."""
    about = {"path": str(images.path.absolute()), "count": measured.count, "image_size": images.image_size}
    about |= images.about | {"skipped": len(images.rejected)}
    network = {"name": extractor.name} | extractor.description
    result = FidResult(numbers, about, reference.about, network, cautions, None)
    if images.results is None:
        return result
    path = images.results.with_name(f"{images.results.name}-{extractor.name}.json")
    header = {"format": FORMAT, "format_version": FORMAT_VERSION, "versions": versions()}
    try:
        write_json(path, header | {k: v for k, v in asdict(result).items() if k != "kept_in"})
    except (OSError, UserError):
        progress.say(f"the result is not kept: {path.parent} can't be written")
        return result
    return FidResult(numbers, about, reference.about, network, cautions, str(path))
