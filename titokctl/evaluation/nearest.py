"""Distances in feature space from images to the nearest ones that a model was trained on.

Letters: n and m images, D feature width.
"""

from dataclasses import dataclass

import numpy as np
import torch

_ROWS_AT_ONCE = 1024
_QUANTILES = (0.05, 0.5)


@dataclass(frozen=True)
class CloserThanHeldOut:
    """The share of samples that lie closer to the training images than the q-quantile of held-out images.

    A model that generalises gives about q; one that copies its training images gives far more.
    """

    quantile: float
    share: float


def nearest_distances(images: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return the distance (n,) float64 of each row of features (n, D) to its nearest row of `reference` (m, D).

    Raises ValueError when widths differ or a set is empty.
    """
    if images.ndim != 2 or reference.ndim != 2 or images.shape[1] != reference.shape[1]:
        raise ValueError(f"expected features (n, D) and (m, D), not {images.shape} and {reference.shape}")
    if not len(images) or not len(reference):
        raise ValueError("nearest neighbours need at least one image in each set")
    # float64, since |a|^2 + |b|^2 - 2 a b loses half of its digits where a is near b.
    b = torch.from_numpy(np.asarray(reference)).double()
    squares = b.square().sum(1)
    parts = []
    for rows in torch.from_numpy(np.asarray(images)).split(_ROWS_AT_ONCE):
        a = rows.double()
        distances = a.square().sum(1, keepdim=True) + squares - 2 * a @ b.T
        parts.append(distances.amin(1).clamp(min=0).sqrt())
    return torch.cat(parts).numpy()


def closer_than_held_out(samples: np.ndarray, held_out: np.ndarray, training: np.ndarray) -> list[CloserThanHeldOut]:
    """Return how many samples lie nearer to a training image than held-out images do.

    Both distances are to the nearest training image. The held-out ones give a threshold for each quantile q (a share
    q of the held-out images lies below it); reported is the share of samples strictly below the threshold.

    Args:
        samples, held_out, training: features (n, D) of each set.
    """
    theirs = nearest_distances(held_out, training)
    ours = nearest_distances(samples, training)
    return [CloserThanHeldOut(q, float((ours < np.quantile(theirs, q)).mean())) for q in _QUANTILES]
