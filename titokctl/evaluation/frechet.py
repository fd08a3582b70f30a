"""The Fréchet distance between two sets of features, each taken as a Gaussian (FID: arXiv 1706.08500).

Letters: n images, D feature width.
"""

from dataclasses import dataclass

import numpy as np
import torch

_ROWS_AT_ONCE = 1024
# Of the smallest to the largest squared pivot.
_FAR_FROM_SINGULAR = 1e-9


@dataclass(frozen=True)
class Gaussian:
    """Mean (D,) and covariance (D, D), float64, the latter divided by n - 1; `count` is n, 0 when not known."""

    mean: np.ndarray
    covariance: np.ndarray
    count: int = 0


class GaussianSums:
    """Running float64 sums from which mean and covariance follow; parts of a set can be added up in any order.

    Args:
        width: D.
    """

    def __init__(self, width: int) -> None:
        self.count = 0
        self.total = np.zeros(width)
        self.products = np.zeros((width, width))
        self._held: list[np.ndarray] = []

    def add(self, features: np.ndarray) -> None:
        """Take in features (n, D)."""
        if features.ndim != 2 or features.shape[1] != len(self.total):
            raise ValueError(f"expected features (n, {len(self.total)}), not {features.shape}")
        self._held.append(np.asarray(features))
        if sum(map(len, self._held)) >= _ROWS_AT_ONCE:
            self.settled()

    def gaussian(self) -> Gaussian:
        """Mean and covariance of what was added. Raises ValueError for fewer than two images."""
        self.settled()
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 images, not {self.count}")
        mean = self.total / self.count
        covariance = (self.products - self.count * np.outer(mean, mean)) / (self.count - 1)
        # The variance of what is the same in all images is rounding alone, of either sign.
        np.fill_diagonal(covariance, covariance.diagonal().clip(min=0))
        return Gaussian(mean, covariance, self.count)

    def settled(self) -> list[np.ndarray]:
        """The sums themselves, `total` (D,) and `products` (D, D), with all that was added in them."""
        if not self._held:
            return [self.total, self.products]
        # Few large products instead of one per batch: the same sums at the speed of a matrix product.
        x = torch.from_numpy(np.concatenate(self._held)).double()
        self._held = []
        self.count += len(x)
        self.total += x.sum(0).numpy()
        self.products += (x.T @ x).numpy()
        return [self.total, self.products]


def gaussian_of(features: np.ndarray) -> Gaussian:
    """Mean and covariance of features (n, D). Raises ValueError for fewer than two rows."""
    sums = GaussianSums(features.shape[1])
    sums.add(features)
    return sums.gaussian()


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|mean difference|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)); 0 for equal Gaussians, also when they are rank-deficient.

    Raises ValueError when the widths differ or a number is not finite.
    """
    for g in (a, b):
        if g.mean.ndim != 1 or g.covariance.shape != (len(g.mean),) * 2:
            raise ValueError(f"a Gaussian of mean {g.mean.shape} and covariance {g.covariance.shape} fits nothing")
        if not (np.isfinite(g.mean).all() and np.isfinite(g.covariance).all()):
            raise ValueError("statistics with values that are not finite")
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"statistics of different widths: {len(a.mean)} and {len(b.mean)}")
    difference = a.mean - b.mean
    traces = np.trace(a.covariance) + np.trace(b.covariance)
    return float(difference @ difference + traces - 2 * trace_of_root(a.covariance, b.covariance))


def trace_of_root(s1: np.ndarray, s2: np.ndarray) -> float:
    """tr((S1 S2)^(1/2)) for covariances (D, D) float64, through symmetric eigenvalue problems only.

    With S1 = A A^T, the eigenvalues of S1 S2 are those of A^T S2 A.
    """
    a = _root(torch.from_numpy(s1))  # (D, rank)
    inner = a.T @ torch.from_numpy(s2) @ a  # (rank, rank)
    if not len(inner):
        return 0.0
    squares = torch.linalg.eigvalsh((inner + inner.T) / 2)
    noise = 8 * torch.finfo(torch.float64).eps * squares[-1].clamp(min=0)
    return float(squares[squares > noise].sqrt().sum())


def _root(s: torch.Tensor) -> torch.Tensor:
    """A (D, rank) with A A^T = S: Cholesky's where S is far from singular, which takes a tenth of the time.

    Otherwise directions in which S has no variance beyond rounding are left out, so that noise of size epsilon does
    not come back as its square root.
    """
    triangle, failed = torch.linalg.cholesky_ex(s)
    pivots = triangle.diagonal()
    if not failed and len(s) and float(pivots.min() / pivots.max()) ** 2 > _FAR_FROM_SINGULAR:
        return triangle
    values, vectors = torch.linalg.eigh(s)
    kept = values > values[-1].clamp(min=0) * len(values) * torch.finfo(torch.float64).eps
    return vectors[:, kept] * values[kept].sqrt()
