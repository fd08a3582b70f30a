"""Metrics whose differences between two sets can be tested image by image, by the influence of each image.

Letters: n samples, m reference images, D feature width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from titokctl.errors import UsageError
from titokctl.evaluation.features import FeatureSet
from titokctl.evaluation.frechet import IMAGES_PER_FEATURE, frechet_distance, gaussian_of, influences
from titokctl.evaluation.metrics import kernel_means, kernel_within
from titokctl.evaluation.racing import Score
from titokctl.readable import counted

_LEAST_FOR_KID = 48  # the test takes the mean influence of so many images for normal


@dataclass(frozen=True)
class PairedMetric:
    """A metric, lower is better.

    Args:
        name: as --metric names it.
        against: maps the features of a reference to a function from features (n, D) float32 to their score.
        least: maps D to the least number of samples.
        one_by_one: needs the features of the reference image by image, and at least `least` of them.
    """

    name: str
    against: Callable[[FeatureSet], Callable[[np.ndarray], Score]]
    least: Callable[[int], int]
    one_by_one: bool

    def lacking(self, reference: FeatureSet) -> str:
        """Return why the reference does not suffice; "" if it does."""
        width = len(reference.pool.mean)
        if self.one_by_one and reference.features is None:
            return "the reference holds neither images nor features, only mean and covariance"
        count = len(reference.features) if self.one_by_one and reference.features is not None else reference.count
        least = self.least(width)
        return (
            f"the reference has {counted(count, 'images')}, at least {least:,} are needed" if 0 < count < least else ""
        )


def paired_metric(name: str) -> PairedMetric:
    """Return the metric called `name`. Raises UsageError for another name."""
    if name not in PAIRED_METRICS:
        raise UsageError(f"unknown metric {name!r}", f"one of: {', '.join(PAIRED_METRICS)}")
    return PAIRED_METRICS[name]


def _kid(reference: FeatureSet) -> Callable[[np.ndarray], Score]:
    """Return KID, whose influences are the first terms of Hoeffding's decomposition, the reference taken as exact."""
    assert reference.features is not None
    rows, within_reference = reference.features, kernel_within(reference.features)

    def score(features: np.ndarray) -> Score:
        within, between = kernel_means(features, rows)
        return Score(float(within.mean() + within_reference - 2 * between.mean()), 2 * (within - between))

    return score


def _fid(reference: FeatureSet) -> Callable[[np.ndarray], Score]:
    def score(features: np.ndarray) -> Score:
        samples = gaussian_of(features)
        value = frechet_distance(samples, reference.pool)
        return Score(value, influences(features, samples, reference.pool))

    return score


_TABLE = (
    PairedMetric("kid", _kid, lambda width: _LEAST_FOR_KID, one_by_one=True),
    PairedMetric("fid", _fid, lambda width: IMAGES_PER_FEATURE * width, one_by_one=False),
)
PAIRED_METRICS = {metric.name: metric for metric in _TABLE}
