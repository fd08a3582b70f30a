"""How far a Fréchet distance would move if other samples of the same kind had been drawn.

The delta method: the distance is linearised in mean and covariance of the samples, the reference held fixed, so that
every sample has an influence, and the standard error is their deviation over sqrt(n). The derivative with respect to
the covariance S1 is I - T, T being the linear map that carries N(0, S1) to N(0, S2) at the least cost.

Letters: n images, D feature width.
"""

import numpy as np
import torch

from titokctl.evaluation.frechet import Gaussian

# With fewer images than this for each feature, the inverse of their covariance is mostly noise.
IMAGES_PER_FEATURE = 2
_ROWS_AT_ONCE = 4096


def frechet_standard_error(features: np.ndarray, samples: Gaussian, reference: Gaussian) -> float | None:
    """Standard error of `frechet_distance(samples, reference)`; None with under 2 D samples, which say too little.

    Args:
        features: (n, D) of all samples.
        samples: their Gaussian.
        reference: what they are compared with, taken as exact.
    """
    n, width = features.shape
    if n < IMAGES_PER_FEATURE * width:
        return None
    mean, difference = torch.from_numpy(samples.mean), torch.from_numpy(samples.mean - reference.mean)
    gradient = torch.eye(width, dtype=torch.float64) - _transport(samples.covariance, reference.covariance)
    influences = []
    for rows in torch.from_numpy(np.ascontiguousarray(features)).split(_ROWS_AT_ONCE):
        x = rows.double() - mean  # (rows, D)
        influences.append(2 * (x @ difference) + ((x @ gradient) * x).sum(1))
    return float(torch.cat(influences).std() / n**0.5)


def _transport(s1: np.ndarray, s2: np.ndarray) -> torch.Tensor:
    """S1^(-1/2) (S1^(1/2) S2 S1^(1/2))^(1/2) S1^(-1/2), (D, D), within the directions where S1 has variance."""
    values, vectors = torch.linalg.eigh(torch.from_numpy(s1))
    kept = values > values[-1].clamp(min=0) * len(values) * torch.finfo(torch.float64).eps
    v, root = vectors[:, kept], values[kept].sqrt()
    a = v * root  # (D, rank)
    inner, turned = torch.linalg.eigh(a.T @ torch.from_numpy(s2) @ a)
    middle = (turned * inner.clamp(min=0).sqrt()) @ turned.T  # (rank, rank)
    b = v / root
    return b @ middle @ b.T
