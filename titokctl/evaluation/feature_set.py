"""What one pass over the features of a set leaves: Gaussians, and the features that other metrics need.

Letters: n images, D feature width, S splits, C classes.
"""

from dataclasses import dataclass, replace

import numpy as np

from titokctl.distributed.group import Group
from titokctl.distributed.reduce import rows_on_main, sum_arrays
from titokctl.evaluation.features import Features
from titokctl.evaluation.frechet import Gaussian, GaussianSums
from titokctl.evaluation.inception_score import ScoreSums


@dataclass(frozen=True)
class FeatureSet:
    """A set of images as metrics see it; None where the extractor or the file it came from has no such thing.

    `features` (m, D) are those of all images or of a part spread evenly over the set; `score_sums` (S, 2 + C) is the
    table of `ScoreSums` for all of them.
    """

    count: int
    pool: Gaussian
    spatial: Gaussian | None = None
    features: np.ndarray | None = None
    score_sums: np.ndarray | None = None

    @property
    def has_all_features(self) -> bool:
        """True when `features` holds a row for every image."""
        return self.features is not None and len(self.features) == self.count


class FeatureCollector:
    """Takes in features batch by batch, in the order of the set.

    Args:
        widths: width of every output of the extractor.
        expected: number of images in the set; the kept ones are spread over them.
        keep: at most so many rows of pooled features are kept.
    """

    def __init__(self, widths: dict[str, int], expected: int, keep: int) -> None:
        self._sums = {name: GaussianSums(width) for name, width in widths.items() if name in ("pool", "spatial")}
        self._scores = ScoreSums(widths["logits"], expected) if "logits" in widths else None
        self._expected, self._share = max(expected, 1), min(keep, max(expected, 1))
        # Pages that are never written cost no memory.
        self._features = np.empty((self._share, widths["pool"]), np.float32)
        self._kept = 0
        self.seen = 0

    def add(self, features: Features, places: np.ndarray | None = None) -> None:
        """Take in the next batch; `places` (n,) are its images' places in the set, by default the next ones."""
        places = np.arange(self.seen, self.seen + len(features["pool"])) if places is None else places
        for name, sums in self._sums.items():
            sums.add(features[name])
        # Row i is kept when a new multiple of expected / keep was reached: evenly spread, and all when they are few.
        kept = (places + 1) * self._share // self._expected > places * self._share // self._expected
        rows = features["pool"][kept]
        self._features[self._kept : self._kept + len(rows)] = rows
        self._kept += len(rows)
        if self._scores is not None:
            self._scores.add(places, features["logits"])
        self.seen += len(places)

    def result(self, group: Group | None = None) -> FeatureSet:
        """What was collected, by all processes of `group` together; the features are on rank 0 alone.

        Raises ValueError for fewer than two images.
        """
        rows: np.ndarray | None = self._features[: self._kept]
        if group is not None:
            self._add_up(group)
            rows = rows_on_main(self._features[: self._kept], group)
        gaussians = {name: sums.gaussian() for name, sums in self._sums.items()}
        found = FeatureSet(self.seen, gaussians["pool"], gaussians.get("spatial"), rows)
        return found if self._scores is None else replace(found, score_sums=self._scores.table)

    def _add_up(self, group: Group) -> None:
        counter = np.array([float(self.seen)])
        arrays = [counter] + ([] if self._scores is None else [self._scores.table])
        for sums in self._sums.values():
            arrays += sums.settled()
        sum_arrays(arrays, group)
        self.seen = int(counter[0])
        for sums in self._sums.values():
            sums.count = self.seen
