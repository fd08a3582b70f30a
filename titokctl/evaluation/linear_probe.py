"""A linear probe: multinomial logistic regression on standardised features, to see which class a set of images shows.

Letters: n images, D feature width, C classes.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_SMALLEST_DEVIATION = 1e-6
_MOST_STEPS = 100
_ROWS_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class LinearProbe:
    """Result of `fit_probe`: mean and deviation (D,) each, weights (C, D), biases (C,)."""

    mean: Tensor
    deviation: Tensor
    weight: Tensor
    bias: Tensor

    def predict(self, features: np.ndarray) -> np.ndarray:
        """The most likely class of each row of features (n, D), (n,) int64."""
        pieces = (self._logits(features[i : i + _ROWS_AT_ONCE]).argmax(1) for i in _starts(len(features)))
        return torch.cat([torch.zeros(0, dtype=torch.int64), *pieces]).numpy()

    def _logits(self, features: np.ndarray) -> Tensor:
        x = (torch.from_numpy(np.asarray(features, np.float32)) - self.mean) / self.deviation
        return F.linear(x, self.weight, self.bias)

    def accuracy(self, features: np.ndarray, labels: np.ndarray) -> float:
        """Share of rows (n, D) whose predicted class is their label (n,)."""
        return float((self.predict(features) == labels).mean())


def fit_probe(features: np.ndarray, labels: np.ndarray, num_classes: int, penalty: float = 0.01) -> LinearProbe:
    """Fit by L-BFGS on all rows at once, from zeros: no randomness.

    Args:
        features: (n, D) float.
        labels: (n,) integers in [0, num_classes).
        num_classes: C.
        penalty: weight of half the squared norm of the weights, added to the mean cross-entropy.

    Raises:
        ValueError: when shapes or labels don't fit.
    """
    if features.ndim != 2 or labels.shape != (len(features),) or not len(features):
        raise ValueError(f"expected features (n, D) and labels (n,), not {features.shape} and {labels.shape}")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"labels must lie in [0, {num_classes}), found {labels.min()} to {labels.max()}")
    x = torch.from_numpy(np.asarray(features, np.float32))
    target = torch.from_numpy(np.asarray(labels, np.int64))
    mean, deviation = x.mean(0), x.std(0, correction=0).clamp(min=_SMALLEST_DEVIATION)
    weight = torch.zeros(num_classes, x.shape[1], requires_grad=True)
    bias = torch.zeros(num_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=_MOST_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = penalty / 2 * weight.square().sum()
        value.backward()
        for first in _starts(len(x)):  # so that memory for logits does not grow with the rows
            rows = slice(first, first + _ROWS_AT_ONCE)
            logits = F.linear((x[rows] - mean) / deviation, weight, bias)
            piece = F.cross_entropy(logits, target[rows], reduction="sum") / len(x)
            piece.backward()
            value = value + piece.detach()
        return value.detach()

    with torch.enable_grad():
        optimizer.step(loss)
    return LinearProbe(mean, deviation, weight.detach(), bias.detach())


def _starts(count: int) -> range:
    return range(0, count, _ROWS_AT_ONCE)
