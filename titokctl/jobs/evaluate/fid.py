"""`titokctl fid`: how close a set of samples is to a reference."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.context import Context
from titokctl.data.sources.choices import NO_CHOICES, Choices
from titokctl.errors import UsageError, UserError
from titokctl.evaluation.extractors import Extractor, FeatureNetwork
from titokctl.evaluation.feature_pass import FeaturePass, Measured, check_readable, measured_samples, statistics_key
from titokctl.evaluation.image_sets import ImageSet, Opening, StatisticsSet, open_images
from titokctl.evaluation.metrics import Metric, Numbers, compute, metrics_named
from titokctl.evaluation.reference import (
    Reference,
    check_network,
    find_reference,
    is_statistics_file,
    reference_images,
)
from titokctl.evaluation.warnings import warnings_about
from titokctl.formats.evaluation import keep_evaluation
from titokctl.formats.statistics import has_images, read_statistics
from titokctl.readable import counted
from titokctl.weights.chain import pick_samples


@dataclass(frozen=True)
class FidResult:
    """Numbers by name, what was compared, and warnings; `kept_in` is the file with the result, if it could be kept."""

    metrics: Numbers
    samples: dict[str, Any]
    reference: dict[str, Any]
    extractor: dict[str, Any]
    warnings: list[str]
    kept_in: str | None


@dataclass(frozen=True)
class FidPlan:
    """The sets and the metrics that would be computed; `kept_in` is the file for the result."""

    samples: Path
    images: int
    reference: Path
    metrics: list[str]
    features: str
    kept_in: Path | None


@dataclass(frozen=True)
class Fid:
    """Compare samples with a reference. Making one raises UsageError for unknown metrics.

    Args:
        samples: an .npz or .npy, a folder of images, shards, a token cache, a sample set, or statistics; None for the
            newest sample set.
        reference: statistics or images; None for what the samples' token cache was made from.
        metrics: names of METRICS; None for all that can be computed.
        network: the feature network.
        preprocessing: how image files become squares, both the samples and the reference; None takes samples as they
            are, which must be of one size, and brings the reference to it.
        tokenizer: for a token cache whose tokenizer is not in the runs folder.
        skip_bad: leave out images that can't be read; None as for `FeaturePass`.
        choices: of image files, as for `open_source`.
        exif: apply the EXIF orientation of image files.
        save_features: keep the features beside the samples; later calls use them while nothing has changed.
        splits: of the Inception score; None for splits of 5,000 images, as the ADM evaluator makes them.
    """

    samples: Path | None = None
    reference: Path | None = None
    metrics: Sequence[str] | None = None
    network: FeatureNetwork = field(default_factory=FeatureNetwork)
    preprocessing: PreprocessingConfig | None = None
    tokenizer: str | None = None
    skip_bad: bool | None = None
    save_features: bool = False
    choices: Choices = NO_CHOICES
    exif: bool = False
    splits: int | None = None

    def __post_init__(self) -> None:
        metrics_named(self.metrics)
        if self.splits is not None and self.splits < 1:
            raise UsageError(f"--is-splits must be at least 1, not {self.splits}")

    def plan(self, context: Context) -> FidPlan:
        """Return what would be compared. Raises UserError or UsageError for what can't be; nothing is measured."""
        extractor, opening, images = self._open(context, is_plan=True)
        if is_statistics_file(self.reference):
            check_network(self.reference, read_statistics(self.reference), extractor)
            reference = self.reference
        else:
            reference = reference_images(self.reference, images, opening).path
        names = [metric.name for metric in metrics_named(self.metrics) if _network_has(metric, extractor)]
        kept_in = images.beside(f"{extractor.name}.json")
        return FidPlan(images.path, images.count, reference, names, extractor.name, kept_in)

    def run(self, context: Context) -> FidResult:
        """Measure and compare; of several processes each returns the same. The result is kept beside the samples.

        Raises: UserError or UsageError for what can't be compared; Stopped after a signal.
        """
        extractor, opening, images = self._open(context, is_plan=False)
        wanted = metrics_named(self.metrics)
        work = FeaturePass(extractor, context, self.skip_bad)
        check_readable(images, work)
        one_by_one = any("features" in metric.needs for metric in wanted)
        reference = find_reference(self.reference, images, one_by_one, opening, work)
        measured = measured_samples(images, self.save_features, work, self.splits)
        result = None
        if context.group.is_main and measured is not None:
            chosen = self._computable(wanted, measured, reference, context)
            numbers = compute(chosen, measured.features, reference.features, extractor.metric_name)
            warnings = warnings_about(images, measured, reference, extractor)
            for warning in warnings:
                context.progress.warn(warning)
            network = {"name": extractor.name} | extractor.description
            about = _about(images, measured)
            found = FidResult(numbers, about, reference.about, network, warnings, None)
            result = asdict(_kept(found, images, extractor, context))
        return FidResult(**context.group.from_main(result))

    def _open(self, context: Context, is_plan: bool) -> tuple[Extractor, Opening, ImageSet]:
        """Find the network and the samples, the same on every process; a plan downloads and keeps nothing."""
        extractor, group = self.network.open(context, fetch=not is_plan), context.group
        for metric in metrics_named(self.metrics) if self.metrics is not None else ():
            if not _network_has(metric, extractor):
                raise UsageError(
                    f"--metrics {metric.name} needs Inception; {extractor.name} has no {metric.needs[0]} features"
                )
        if self.splits is not None and "logits" not in extractor.widths:
            raise UsageError(
                f"--is-splits is for the Inception score, which needs a classifier: {extractor.name} has none"
            )
        found = str(pick_samples(self.samples, context.runs, context.say)) if group.is_main else ""
        opening = Opening(context, self.tokenizer, self.preprocessing, not is_plan, self.choices, self.exif)
        images = _opened(Path(group.from_main(found)), opening, extractor)
        if self.preprocessing is not None and images.about.get("preprocessing") is None:
            raise UsageError(
                f"--size is for folders and shards of images; {images.path} is judged at its own size",
                "leave out --size",
            )
        if self.splits is not None and isinstance(images, StatisticsSet):
            raise UsageError(f"--is-splits is for images, and {images.path} holds statistics", "leave it out")
        if self.splits is not None and self.splits > images.count:
            raise UsageError(
                f"--is-splits {self.splits:,} is more than {counted(images.count, 'images')} can be divided into"
            )
        return extractor, opening, images

    def _computable(
        self, wanted: Sequence[Metric], measured: Measured, reference: Reference, context: Context
    ) -> list[Metric]:
        """Return the metrics that the sets allow. Raises UserError if one that was named is not among them."""
        chosen = []
        for metric in wanted:
            reason = metric.lacking(measured.features, reference.features)
            if not reason:
                chosen.append(metric)
            elif self.metrics is not None:
                raise UserError(f"{metric.name} can't be computed: {reason}")
            else:
                context.say(f"no {metric.name}: {reason}")
        return chosen


def _opened(path: Path, opening: Opening, extractor: Extractor) -> ImageSet:
    """Open samples: a set of images, or statistics of one. Raises UserError when they are of another network."""
    if not is_statistics_file(path) or has_images(path):
        return open_images(path, opening)
    found = StatisticsSet(path)
    check_network(path, found.statistics, extractor)
    return found


def _network_has(metric: Metric, extractor: Extractor) -> bool:
    return all(need in extractor.widths for need in metric.needs if need != "features")


def _about(images: ImageSet, measured: Measured) -> dict[str, Any]:
    about = {"path": str(images.path.absolute()), "count": measured.features.count, "image_size": measured.image_size}
    scores = measured.features.score_sums
    splits = {} if scores is None else {"is_splits": len(scores), "is_split_size": int(scores[:, 0].max())}
    return about | images.about | splits | {"skipped": len(measured.rejected)}


def _kept(result: FidResult, images: ImageSet, extractor: Extractor, context: Context) -> FidResult:
    """Write the result beside the samples if that is possible; return it with the name of the file."""
    path = images.beside(f"{extractor.name}.json")
    if path is None:
        return result
    try:
        keep_evaluation(path, asdict(result), statistics_key(images, extractor.name, extractor.description))
    except (OSError, UserError) as error:
        context.say(f"the result is not kept in {path}: {getattr(error, 'message', error)}")
        return result
    return replace(result, kept_in=str(path))
