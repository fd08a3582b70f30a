"""The kernel distance (KID, arXiv 1801.01401): unbiased squared MMD with the kernel (x . y / D + 1)^3.

Unlike the Fréchet distance its expectation does not depend on the number of images, so it suits small sets better.

Letters: n and m images, D feature width.
"""

import numpy as np
import torch
from torch import Tensor

_ROWS_AT_ONCE = 2048


def kernel_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Return the unbiased estimate from all pairs; it may be slightly negative for equal distributions.

    Args:
        x, y: features (n, D) and (m, D). Time and operations grow with (n + m)^2 D.

    Raises:
        ValueError: when the widths differ or a set has fewer than two rows.
    """
    a, b = _checked(x, y)
    within = _mean_off_diagonal(a) + _mean_off_diagonal(b)
    return within - 2 * _kernel_sum(a, b) / (len(a) * len(b))


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


def _mean_off_diagonal(a: Tensor) -> float:
    n, width = a.shape
    diagonal = (((a * a).sum(1) / width + 1) ** 3).sum()
    return (_kernel_sum(a, a) - float(diagonal)) / (n * (n - 1))
