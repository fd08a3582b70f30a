"""The table of metrics: what each one needs, and its numbers for two feature sets. A new metric is one entry of it.

Letters: n and m images, D feature width.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from titokctl.errors import UsageError
from titokctl.evaluation.features import FeatureSet
from titokctl.evaluation.frechet import frechet_distance, frechet_standard_error
from titokctl.evaluation.inception_score import score_of

# So many samples are published FIDs of: the distance depends on their number.
FID_IMAGES = 50_000
# All pairs of larger sets take minutes; subsets say as much there.
_MAX_ALL_PAIRS = 10_000
NEIGHBOURS = 3
MAX_REFERENCE_IMAGES = 10_000
_ROWS_AT_ONCE = 2048

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
        raise UsageError(f"unknown metric {named}", f"any of: {','.join(METRICS)}")
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


def _kid(samples: FeatureSet, reference: FeatureSet) -> Numbers:
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
    Metric("kid", _kid, needs=("features",)),
)
METRICS = {metric.name: metric for metric in _TABLE}


def precision_recall(samples: np.ndarray, reference: np.ndarray, at_once: int = 1 << 24) -> tuple[float, float]:
    """Return precision and recall (arXiv 1904.06991), both shares in [0, 1], as the ADM evaluator computes them.

    Every image of a set is the centre of a ball that reaches to its k-th nearest neighbour in the set. The union of the
    balls is the set's region. Precision is the share of samples in the reference's region, recall the share of
    reference images in the samples' region.

    Args:
        samples, reference: features (n, D) and (m, D).
        at_once: at most so many distances are held at once.

    Raises ValueError when widths differ or a set has no more than 3 images.
    """
    if samples.ndim != 2 or reference.ndim != 2 or samples.shape[1] != reference.shape[1]:
        raise ValueError(f"expected features (n, D) and (m, D), not {samples.shape} and {reference.shape}")
    if min(len(samples), len(reference)) <= NEIGHBOURS:
        sizes = f"{len(samples)} and {len(reference)}"
        raise ValueError(f"{NEIGHBOURS} neighbours need more than {NEIGHBOURS} images in each set, not {sizes}")
    # Distances are the same about any origin; about the middle, float32 keeps more of their digits.
    origin = reference.mean(0, dtype=np.float64)
    a = torch.from_numpy((samples - origin).astype(np.float32))
    b = torch.from_numpy((reference - origin).astype(np.float32))
    radii_a, radii_b = _radii(a, at_once), _radii(b, at_once)
    hits_a, hits_b = [], torch.zeros(len(b), dtype=torch.bool)
    for first, squares in _squared_distances(a, b, at_once):
        hits_a.append((squares <= radii_b).any(1))
        hits_b |= (squares <= radii_a[first : first + len(squares), None]).any(0)
    return float(torch.cat(hits_a).double().mean()), float(hits_b.double().mean())


def _radii(x: Tensor, at_once: int) -> Tensor:
    """Return the squared distance (n,) of every row to its k-th nearest other row."""
    # The nearest of all is the row itself.
    return torch.cat(
        [squares.kthvalue(NEIGHBOURS + 1, dim=1).values for _, squares in _squared_distances(x, x, at_once)]
    )


def _squared_distances(a: Tensor, b: Tensor, at_once: int) -> Iterator[tuple[int, Tensor]]:
    """Yield (first row, squared distances (rows, m)) for blocks of rows of `a`."""
    rows = max(1, at_once // len(b))
    norms_a, norms_b = a.square().sum(1), b.square().sum(1)
    for first in range(0, len(a), rows):
        block = slice(first, first + rows)
        products = a[block] @ b.T
        yield first, products.mul_(-2).add_(norms_a[block, None]).add_(norms_b).clamp_(min=0)


def kernel_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Return the kernel distance (KID, arXiv 1801.01401), the unbiased estimate from all pairs.

    It is the squared MMD with the kernel (x . y / D + 1)^3, and may be slightly negative for equal distributions.
    Unlike the Fréchet distance, its expectation does not depend on the number of images, so it suits small sets better.

    Args:
        x, y: features (n, D) and (m, D). Time and operations grow with (n + m)^2 D.

    Raises:
        ValueError: when the widths differ or a set has fewer than two rows.
    """
    a, b = _checked(x, y)
    within = _mean_off_diagonal(a) + _mean_off_diagonal(b)
    return within - 2 * _kernel_sum(a, b) / (len(a) * len(b))


def kernel_means(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean kernel of each row of `x` with the other rows of `x`, and with all rows of `y`.

    Both are (n,) float64. Arguments and errors as for `kernel_distance`, of which they are two of three terms.
    """
    a, b = _checked(x, y)
    n, width = a.shape
    itself = ((a * a).sum(1) / width + 1) ** 3
    return ((_kernel_means(a, a) * n - itself) / (n - 1)).numpy(), _kernel_means(a, b).numpy()


def kernel_within(y: np.ndarray) -> float:
    """Return the mean kernel of all pairs of different rows of `y` (m, D): the third term of `kernel_distance`."""
    return _mean_off_diagonal(_checked(y, y)[0])


def kernel_distance_in_subsets(
    x: np.ndarray, y: np.ndarray, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return the usual estimate, mean and deviation over `subsets` subsets of min(`subset_size`, n, m) of each set.

    Subset i depends on (seed, i) alone. Raises ValueError as `kernel_distance`.
    """
    _checked(x, y)
    size = min(subset_size, len(x), len(y))
    if size == len(x) == len(y):  # every subset is the whole set
        return kernel_distance(x, y), 0.0
    values = []
    for i in range(subsets):
        draw = np.random.Generator(np.random.PCG64([seed, i]))
        rows_x, rows_y = draw.choice(len(x), size, replace=False), draw.choice(len(y), size, replace=False)
        values.append(kernel_distance(x[rows_x], y[rows_y]))
    return float(np.mean(values)), float(np.std(values))


def _checked(x: np.ndarray, y: np.ndarray) -> tuple[Tensor, Tensor]:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"expected features (n, D) and (m, D), not {x.shape} and {y.shape}")
    if min(len(x), len(y)) < 2:
        raise ValueError(f"a kernel distance needs at least 2 images of each set, not {len(x)} and {len(y)}")
    return torch.from_numpy(np.ascontiguousarray(x)).double(), torch.from_numpy(np.ascontiguousarray(y)).double()


def _kernel_sum(a: Tensor, b: Tensor) -> float:
    width = a.shape[1]
    parts = (rows @ b.T for rows in a.split(_ROWS_AT_ONCE))
    return float(sum((part.div_(width).add_(1) ** 3).sum() for part in parts))


def _kernel_means(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean kernel (n,) of each row of `a` with all rows of `b`."""
    width = a.shape[1]
    return torch.cat([((rows @ b.T).div_(width).add_(1) ** 3).mean(1) for rows in a.split(_ROWS_AT_ONCE)])


def _mean_off_diagonal(a: Tensor) -> float:
    n, width = a.shape
    diagonal = (((a * a).sum(1) / width + 1) ** 3).sum()
    return (_kernel_sum(a, a) - float(diagonal)) / (n * (n - 1))
