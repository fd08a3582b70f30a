"""What one pass over the features of a set leaves: Gaussians, and the features that other metrics need.

Letters: n images, D feature width.
"""

from dataclasses import dataclass

import numpy as np

from titokctl.evaluation.features import Features
from titokctl.evaluation.frechet import Gaussian, GaussianSums


@dataclass(frozen=True)
class FeatureSet:
    """A set of images as metrics see it; None where the extractor or the file it came from has no such thing.

    `features` (m, D) are those of all images or of a part spread evenly over the set; `logits` are those of all.
    """

    count: int
    pool: Gaussian
    spatial: Gaussian | None = None
    features: np.ndarray | None = None
    logits: np.ndarray | None = None

    @property
    def has_all_features(self) -> bool:
        """True when `features` holds a row for every image."""
        return self.features is not None and len(self.features) == self.count


class FeatureCollector:
    """Takes in features batch by batch, in the order of the set.

    Args:
        widths: width of every output of the extractor.
        expected: number of images that will come; the kept ones are spread over them.
        keep: at most so many rows of pooled features are kept.
    """

    def __init__(self, widths: dict[str, int], expected: int, keep: int) -> None:
        self._sums = {name: GaussianSums(width) for name, width in widths.items() if name in ("pool", "spatial")}
        self._expected, self._keep = max(expected, 1), keep
        self._features: list[np.ndarray] = []
        self._logits: list[np.ndarray] = []
        self._seen = 0

    def add(self, features: Features) -> None:
        """Take in the next batch."""
        for name, sums in self._sums.items():
            sums.add(features[name])
        # Row i is kept when a new multiple of expected / keep was reached: evenly spread, and all when they are few.
        rows = np.arange(self._seen, self._seen + len(features["pool"]))
        share = min(self._keep, self._expected)
        kept = (rows + 1) * share // self._expected > rows * share // self._expected
        self._features.append(features["pool"][kept])
        if "logits" in features:
            self._logits.append(features["logits"])
        self._seen += len(rows)

    def result(self) -> FeatureSet:
        """What was collected. Raises ValueError for fewer than two images."""
        gaussians = {name: sums.gaussian() for name, sums in self._sums.items()}
        return FeatureSet(
            self._seen,
            gaussians["pool"],
            gaussians.get("spatial"),
            np.concatenate(self._features),
            np.concatenate(self._logits) if self._logits else None,
        )
