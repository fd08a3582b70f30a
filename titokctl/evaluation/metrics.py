"""The table of metrics: what each one needs, and its numbers for two feature sets. A new metric is one entry of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from titokctl.errors import UsageError
from titokctl.evaluation.features import FeatureSet
from titokctl.evaluation.frechet import frechet_distance
from titokctl.evaluation.frechet_error import frechet_standard_error
from titokctl.evaluation.inception_score import score_of
from titokctl.evaluation.kernel_distance import kernel_distance, kernel_distance_in_subsets
from titokctl.evaluation.precision_recall import MAX_REFERENCE_IMAGES, NEIGHBOURS, precision_recall

# So many samples are published FIDs of: the distance depends on their number.
FID_IMAGES = 50_000
# All pairs of larger sets take minutes; subsets say as much there.
_MAX_ALL_PAIRS = 10_000

Numbers = dict[str, float]
# Of a feature set, besides the Gaussian of the pooled features: that of the spatial ones, sums over the classifier's
# logits, and pooled features image by image.
Need = Literal["spatial", "logits", "features"]
_FIELD = {"spatial": "spatial", "logits": "score_sums", "features": "features"}
_MISSING_IN_SAMPLES = {
    "spatial": "these features have no spatial part",
    "logits": "these features have no classifier",
    "features": "the samples have no features image by image",
}
_MISSING_IN_REFERENCE = {
    "spatial": "the reference has no spatial statistics (mu_s, sigma_s)",
    "logits": "the reference has no sums over a classifier's logits",
    "features": "the reference holds neither images nor features, only mean and covariance",
}


@dataclass(frozen=True)
class Metric:
    """A way to judge samples beside a reference.

    Args:
        name: as --metrics names it.
        compute: gives numbers by name for the feature sets (samples, reference). A name begins with the metric's, and
            is followed by "_" where there are several; the feature network's name is put between.
        needs: what of the feature sets it needs, besides the Gaussian of the pooled features.
        min_count: the least number of images in each set.
        of_samples: True for a metric of the samples alone.
    """

    name: str
    compute: Callable[[FeatureSet, FeatureSet], Numbers]
    needs: tuple[Need, ...] = ()
    min_count: int = 2
    of_samples: bool = False

    def lacking(self, samples: FeatureSet, reference: FeatureSet) -> str:
        """Return why the metric can't be computed of two sets; "" if it can."""
        sets = [(samples, _MISSING_IN_SAMPLES), (reference, _MISSING_IN_REFERENCE)]
        for found, missing in sets[:1] if self.of_samples else sets:
            for need in self.needs:
                if getattr(found, _FIELD[need]) is None:
                    return missing[need]
            if 0 < _images(found, "features" in self.needs) < self.min_count:
                return f"at least {self.min_count} images of each set are needed"
        return ""


def metrics_named(names: Sequence[str] | None) -> list[Metric]:
    """Return the metrics called `names`; all of them for None. Raises UsageError for other names, or none."""
    unknown = [name for name in names or () if name not in METRICS]
    if unknown or (names is not None and not names):
        named = repr(unknown[0]) if unknown else "''"
        raise UsageError(f"there is no metric named {named}", f"any of: {','.join(METRICS)}")
    return [METRICS[name] for name in (METRICS if names is None else names)]


def compute(
    metrics: Sequence[Metric], samples: FeatureSet, reference: FeatureSet, named: Callable[[str], str]
) -> Numbers:
    """Return the numbers of all `metrics`, under the names that `named` gives them.

    Raises ValueError when a set has not what a metric needs; `Metric.lacking` says so beforehand.
    """
    numbers: Numbers = {}
    for metric in metrics:
        if reason := metric.lacking(samples, reference):
            raise ValueError(f"{metric.name} can't be computed: {reason}")
        numbers |= {named(name): value for name, value in metric.compute(samples, reference).items()}
    return numbers


def _images(found: FeatureSet, one_by_one: bool) -> int:
    """Return the number of images that a metric sees; 0 if it was not recorded."""
    return len(found.features) if one_by_one and found.features is not None else found.count


def _fid(samples: FeatureSet, reference: FeatureSet) -> Numbers:
    numbers = {"fid": frechet_distance(samples.pool, reference.pool)}
    if samples.has_all_features and samples.features is not None:
        error = frechet_standard_error(samples.features, samples.pool, reference.pool)
        if error is not None:
            numbers["fid_standard_error"] = error
    return numbers


def _sfid(samples: FeatureSet, reference: FeatureSet) -> Numbers:
    assert samples.spatial is not None
    assert reference.spatial is not None
    return {"sfid": frechet_distance(samples.spatial, reference.spatial)}


def _inception_score(samples: FeatureSet, reference: FeatureSet) -> Numbers:
    assert samples.score_sums is not None
    mean, deviation = score_of(samples.score_sums)
    return {"is": mean, "is_deviation": deviation}


def _precision_recall(samples: FeatureSet, reference: FeatureSet) -> Numbers:
    assert samples.features is not None
    assert reference.features is not None
    precision, recall = precision_recall(samples.features, reference.features[:MAX_REFERENCE_IMAGES])
    return {"precision": precision, "recall": recall}


def _kernel_distance(samples: FeatureSet, reference: FeatureSet) -> Numbers:
    assert samples.features is not None
    assert reference.features is not None
    mean, deviation = kernel_distance_in_subsets(samples.features, reference.features)
    numbers = {"kid": mean, "kid_deviation": deviation}
    if max(len(samples.features), len(reference.features)) <= _MAX_ALL_PAIRS:
        numbers["kid_all_pairs"] = kernel_distance(samples.features, reference.features)
    return numbers


_TABLE = (
    Metric("fid", _fid),
    Metric("sfid", _sfid, needs=("spatial",)),
    Metric("is", _inception_score, needs=("logits",), min_count=1, of_samples=True),
    Metric("pr", _precision_recall, needs=("features",), min_count=NEIGHBOURS + 1),
    Metric("kid", _kernel_distance, needs=("features",)),
)
METRICS = {metric.name: metric for metric in _TABLE}
