"""The Inception score (arXiv 1606.03498) as the ADM evaluator computes it.

Letters: n images, C classes of the classifier.
"""

from dataclasses import dataclass

import numpy as np
import torch

SPLIT_SIZE = 5000


@dataclass(frozen=True)
class InceptionScore:
    """Mean and standard deviation over splits of consecutive images, and how many splits there were."""

    mean: float
    deviation: float
    splits: int


def inception_score(logits: np.ndarray, split_size: int = SPLIT_SIZE) -> InceptionScore:
    """exp of the mean divergence between an image's classes and those of its split, averaged over splits.

    Splits are consecutive images, so a class-sorted set scores too low; the last split may be smaller.

    Args:
        logits: (n, C) without the classifier's bias, in the order of the set.

    Raises:
        ValueError: when there are no images.
    """
    if logits.ndim != 2 or not len(logits):
        raise ValueError(f"expected logits (n, C) of at least one image, not {logits.shape}")
    scores = []
    for first in range(0, len(logits), split_size):
        log_p = torch.from_numpy(np.ascontiguousarray(logits[first : first + split_size])).double().log_softmax(1)
        p = log_p.exp()
        # A class that no image of the split can show has the mean 0 and adds nothing.
        log_mean = p.mean(0).clamp(min=torch.finfo(torch.float64).tiny).log()
        scores.append(float((p * (log_p - log_mean)).sum(1).mean().exp()))
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)), len(scores))
