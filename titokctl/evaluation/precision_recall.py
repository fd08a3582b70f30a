"""Precision and recall of sets of features (arXiv 1904.06991) as the ADM evaluator computes them.

Every image of a set is the centre of a ball that reaches to its k-th nearest neighbour in the set. The union of the
balls is the set's region. Precision is the share of samples in the reference's region, recall the share of reference
images in the samples' region.

Letters: n and m images, D feature width.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

NEIGHBOURS = 3
MAX_REFERENCE_IMAGES = 10_000
_DISTANCES_AT_ONCE = 1 << 24


def precision_recall(samples: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Return the precision of `samples` (n, D) and recall of `reference` (m, D), both shares in [0, 1].

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
    radii_a, radii_b = _radii(a), _radii(b)
    hits_a, hits_b = [], torch.zeros(len(b), dtype=torch.bool)
    for first, squares in _squared_distances(a, b):
        hits_a.append((squares <= radii_b).any(1))
        hits_b |= (squares <= radii_a[first : first + len(squares), None]).any(0)
    return float(torch.cat(hits_a).double().mean()), float(hits_b.double().mean())


def _radii(x: Tensor) -> Tensor:
    """Return the squared distance (n,) of every row to its k-th nearest other row."""
    # The nearest of all is the row itself.
    return torch.cat([squares.kthvalue(NEIGHBOURS + 1, dim=1).values for _, squares in _squared_distances(x, x)])


def _squared_distances(a: Tensor, b: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield (first row, squared distances (rows, m)) for blocks of rows of `a`."""
    rows = max(1, _DISTANCES_AT_ONCE // len(b))
    norms_a, norms_b = a.square().sum(1), b.square().sum(1)
    for first in range(0, len(a), rows):
        block = slice(first, first + rows)
        products = a[block] @ b.T
        yield first, products.mul_(-2).add_(norms_a[block, None]).add_(norms_b).clamp_(min=0)
