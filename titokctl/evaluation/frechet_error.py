"""The standard error of a Fréchet distance, over draws of the samples.

The delta method: the distance is linearised in mean and covariance of the samples, the reference held fixed, so that
every sample has an influence, and the standard error is their deviation over sqrt(n). The derivative with respect to
the covariance S1 is I - T, T being the linear map that carries N(0, S1) to N(0, S2) at the least cost.

Letters: n images, D feature width.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from titokctl.evaluation.frechet import Gaussian

# With fewer images than this for each feature, the inverse of their covariance is mostly noise.
IMAGES_PER_FEATURE = 2
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class PairedTest:
    """A two-sided test of the difference between two distances to one reference.

    `difference` is the first minus the second, `p` the p-value.
    """

    difference: float
    standard_error: float
    p: float
    is_paired: bool


def frechet_standard_error(features: np.ndarray, samples: Gaussian, reference: Gaussian) -> float | None:
    """Return the standard error of `frechet_distance(samples, reference)`; None for fewer than 2 D samples.

    Args:
        features: (n, D) of all samples.
        samples: their Gaussian.
        reference: the Gaussian to compare with, taken as exact.
    """
    if len(features) < IMAGES_PER_FEATURE * features.shape[1]:
        return None
    return _standard_error(influences(features, samples, reference))


def influences(features: np.ndarray, samples: Gaussian, reference: Gaussian) -> np.ndarray:
    """Return (n,) float64, n times the influence of each sample on the distance, up to a constant.

    Arguments as in `frechet_standard_error`.
    """
    mean, difference = torch.from_numpy(samples.mean), torch.from_numpy(samples.mean - reference.mean)
    gradient = torch.eye(features.shape[1], dtype=torch.float64) - _transport(samples.covariance, reference.covariance)
    found = []
    for rows in torch.from_numpy(np.ascontiguousarray(features)).split(_ROWS_AT_ONCE):
        x = rows.double() - mean  # (rows, D)
        found.append(2 * (x @ difference) + ((x @ gradient) * x).sum(1))
    return torch.cat(found).numpy()


def paired_test(first: float, second: float, influences_1: np.ndarray, influences_2: np.ndarray) -> PairedTest:
    """Compare two distances to one reference by the influences of their samples.

    Sets of equal size are compared image by image: what images i of both have in common (label, noise) cancels. If
    they have nothing in common, the result is that for independent sets.
    """
    is_paired = len(influences_1) == len(influences_2)
    if is_paired:
        error = _standard_error(influences_1 - influences_2)
    else:
        error = math.hypot(_standard_error(influences_1), _standard_error(influences_2))
    difference = first - second
    z = abs(difference) / error if error else (math.inf if difference else 0.0)
    p = math.erfc(z / math.sqrt(2))
    return PairedTest(difference, error, p, is_paired)


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / len(values) ** 0.5)


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
