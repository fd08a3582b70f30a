"""`titokctl fid`: how close a set of samples is to a reference."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.distributed.group import Group, single_group
from titokctl.distributed.stop import StopRequest
from titokctl.errors import UsageError, UserError
from titokctl.evaluation.extractors import Extractor, ExtractorOptions
from titokctl.evaluation.feature_pass import FeaturePass, extractor_for, statistics_key
from titokctl.evaluation.feature_set import FeatureSet
from titokctl.evaluation.image_set import ImageSet, Opening
from titokctl.evaluation.image_sets import open_images
from titokctl.evaluation.kept_features import features_of
from titokctl.evaluation.metrics import METRICS, Numbers, compare, lacking
from titokctl.evaluation.reference import Reference, find_reference
from titokctl.evaluation.warnings import warnings_about
from titokctl.formats.evaluation import keep_evaluation
from titokctl.progress import Progress
from titokctl.weights.chain import pick_samples


@dataclass(frozen=True)
class FidResult:
    """Numbers by name, what was compared, and what to beware of."""

    metrics: Numbers
    samples: dict[str, Any]
    reference: dict[str, Any]
    extractor: dict[str, Any]
    warnings: list[str]
    kept_in: str | None


def fid(
    samples: str | None,
    reference: str | None,
    runs: Path,
    *,
    metrics: Sequence[str] | None = None,
    features: str = "inception",
    options: ExtractorOptions | None = None,
    preprocessing: PreprocessingConfig | None = None,
    tokenizer: str | None = None,
    skip_bad: bool = False,
    save_features: bool = False,
    progress: Progress,
    stop: StopRequest,
    group: Group | None = None,
) -> FidResult:
    """Compare samples with a reference.

    Args:
        samples: an .npz, a folder of images, shards, a token cache, or a sample set; None for the newest one.
        reference: statistics or images; None for what the samples' token cache was made from.
        runs: the runs folder; statistics of image references are kept in it.
        metrics: of METRICS; None for all that can be computed.
        features: name of the feature network.
        options: its device, weights and precision.
        preprocessing: how image files become squares, both the samples and the reference; None takes samples as they
            are, which must be of one size, and brings the reference to it.
        tokenizer: for a token cache whose tokenizer is not in the runs folder.
        skip_bad: judge the readable images of a set that has others.
        save_features: keep the features beside the samples; later calls use them while nothing has changed.
        group: processes that share the images; each returns the same.

    Raises: UserError or UsageError for what can't be compared; Stopped after a signal.
    """
    group = group or single_group()
    check_metrics(metrics)
    extractor = extractor_for(features, options, progress, group)
    _check_network_has(metrics, extractor)
    opening = Opening(runs, progress.say, tokenizer, preprocessing, extractor.device)
    picked = group.from_main(str(pick_samples(samples, runs, progress.say)) if group.is_main else "")
    images = open_images(Path(picked), opening)
    if preprocessing is not None and images.about.get("preprocessing") is None:
        raise UsageError(
            f"--size is for folders and shards of images; {images.path} is judged at its own size", "leave out --size"
        )
    given = Path(reference) if reference is not None else None
    wanted = tuple(metrics) if metrics else METRICS
    work = FeaturePass(extractor, progress, stop, group, skip_bad)
    found = find_reference(given, images, bool({"pr", "kid"} & set(wanted)), opening, work)
    measured = features_of(images, save_features, work)
    result = None
    if group.is_main and measured is not None:
        chosen = _computable(wanted, metrics is not None, measured, found.features, progress)
        numbers = compare(measured, found.features, chosen, extractor.metric_name)
        cautions = warnings_about(images, measured, found, extractor)
        for caution in cautions:
            progress.warn(caution)
        result = asdict(_kept(images, numbers, measured.count, found, cautions, work))
    return FidResult(**group.from_main(result))


def check_metrics(metrics: Sequence[str] | None) -> None:
    """Raise UsageError for names that are no metrics."""
    unknown = [name for name in metrics or () if name not in METRICS]
    if unknown or (metrics is not None and not metrics):
        named = repr(unknown[0]) if unknown else "''"
        raise UsageError(f"there is no metric named {named}", f"any of: {','.join(METRICS)}")


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
    images: ImageSet, numbers: Numbers, count: int, reference: Reference, cautions: list[str], work: FeaturePass
) -> FidResult:
    """The result, also written beside the samples where that is allowed."""
    extractor = work.extractor
    about = {"path": str(images.path.absolute()), "count": count, "image_size": images.image_size}
    about |= images.about | {"skipped": len(images.rejected)}
    network = {"name": extractor.name} | extractor.description
    result = FidResult(numbers, about, reference.about, network, cautions, None)
    path = images.beside(f"{extractor.name}.json")
    if path is None:
        return result
    try:
        keep_evaluation(path, asdict(result), statistics_key(images, extractor.name, extractor.description))
    except (OSError, UserError) as error:
        work.progress.say(f"the result is not kept in {path}: {getattr(error, 'message', error)}")
        return result
    return replace(result, kept_in=str(path))
