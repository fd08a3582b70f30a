"""The metrics by their names: what each needs, and its numbers for two feature sets."""

from collections.abc import Callable, Sequence

from titokctl.evaluation.feature_set import FeatureSet
from titokctl.evaluation.frechet import frechet_distance
from titokctl.evaluation.frechet_error import frechet_standard_error
from titokctl.evaluation.inception_score import score_of
from titokctl.evaluation.kernel_distance import kernel_distance, kernel_distance_in_subsets
from titokctl.evaluation.precision_recall import MAX_REFERENCE_IMAGES, NEIGHBOURS, precision_recall

# All pairs of larger sets take minutes; subsets say as much there.
_MAX_ALL_PAIRS = 10_000

Numbers = dict[str, float]


def compare(samples: FeatureSet, reference: FeatureSet, metrics: Sequence[str], named: Callable[[str], str]) -> Numbers:
    """The numbers of every metric in `metrics`, under the names that `named` gives them.

    Raises ValueError when a metric needs what the sets don't have (`lacking` says it beforehand).
    """
    numbers: Numbers = {}
    for metric in metrics:
        found = _COMPUTE[metric](samples, reference)
        numbers |= {named(name): value for name, value in found.items()}
    return numbers


def lacking(metric: str, samples: FeatureSet, reference: FeatureSet) -> str:
    """Why `metric` can't be computed, "" when it can."""
    if metric == "sfid" and samples.spatial is None:
        return "these features have no spatial part"
    if metric == "sfid" and reference.spatial is None:
        return "the reference has no spatial statistics (mu_s, sigma_s)"
    if metric == "is" and samples.score_sums is None:
        return "these features have no classifier"
    if metric in ("pr", "kid") and reference.features is None:
        return "the reference holds neither images nor features, only mean and covariance"
    if (
        metric == "pr"
        and min(samples.count, 0 if reference.features is None else len(reference.features)) <= NEIGHBOURS
    ):
        return f"more than {NEIGHBOURS} images of each set are needed"
    return ""


def _fid(samples: FeatureSet, reference: FeatureSet) -> Numbers:
    numbers = {"fid": frechet_distance(samples.pool, reference.pool)}
    if samples.has_all_features and samples.features is not None:
        error = frechet_standard_error(samples.features, samples.pool, reference.pool)
        if error is not None:
            numbers["fid_standard_error"] = error
    return numbers


def _sfid(samples: FeatureSet, reference: FeatureSet) -> Numbers:
    if samples.spatial is None or reference.spatial is None:
        raise ValueError("sFID needs spatial features of both sets")
    return {"sfid": frechet_distance(samples.spatial, reference.spatial)}


def _inception_score(samples: FeatureSet, reference: FeatureSet) -> Numbers:
    if samples.score_sums is None:
        raise ValueError("the Inception score needs sums over logits")
    mean, deviation = score_of(samples.score_sums)
    return {"is": mean, "is_deviation": deviation}


def _precision_recall(samples: FeatureSet, reference: FeatureSet) -> Numbers:
    if samples.features is None or reference.features is None:
        raise ValueError("precision and recall need features of both sets")
    precision, recall = precision_recall(samples.features, reference.features[:MAX_REFERENCE_IMAGES])
    return {"precision": precision, "recall": recall}


def _kid(samples: FeatureSet, reference: FeatureSet) -> Numbers:
    if samples.features is None or reference.features is None:
        raise ValueError("a kernel distance needs features of both sets")
    mean, deviation = kernel_distance_in_subsets(samples.features, reference.features)
    numbers = {"kid": mean, "kid_deviation": deviation}
    if max(len(samples.features), len(reference.features)) <= _MAX_ALL_PAIRS:
        numbers["kid_all_pairs"] = kernel_distance(samples.features, reference.features)
    return numbers


_COMPUTE: dict[str, Callable[[FeatureSet, FeatureSet], Numbers]] = {
    "fid": _fid, "sfid": _sfid, "is": _inception_score, "pr": _precision_recall, "kid": _kid,
}  # fmt: skip
METRICS = tuple(_COMPUTE)
