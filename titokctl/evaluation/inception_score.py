"""The Inception score (arXiv 1606.03498) as the ADM evaluator computes it.

Letters: n images, C classes of the classifier, S splits.
"""

import numpy as np
import torch

SPLIT_SIZE = 5000
_ROWS_AT_ONCE = 1024


def starts_of(images: int, splits: int | None = None) -> np.ndarray:
    """Return the position of each split's first image in a set, (S,) int64.

    Args:
        images: number in the whole set.
        splits: S, which divides the set as evenly as possible, as torch-fidelity and the original code do with 10; None
            for splits of 5,000 images, the last of which may be smaller, as the ADM evaluator makes them.
    """
    if splits is None:
        return np.arange(0, max(1, images), SPLIT_SIZE)
    return np.arange(splits) * images // splits


class ScoreSums:
    """Running float64 sums for each split, from which the score follows: memory does not grow with the images.

    An image's split follows from its position in the set, so parts of a set can be added up in any order.

    Args:
        classes: C.
        starts: the position of each split's first image, (S,) ascending from 0, as from `starts_of`.
    """

    def __init__(self, classes: int, starts: np.ndarray) -> None:
        self.starts = starts
        # A row for each split: images, sum of p log p over images and classes, sum of p over images for each class.
        self.table = np.zeros((len(starts), 2 + classes))

    def add(self, places: np.ndarray, logits: np.ndarray) -> None:
        """Take in logits (n, C) without the classifier's bias, of the images at the positions `places` (n,)."""
        splits = np.searchsorted(self.starts, places, side="right") - 1
        for split in np.unique(splits):
            for rows in torch.from_numpy(logits[splits == split]).split(_ROWS_AT_ONCE):
                log_p = rows.double().log_softmax(1)
                p = log_p.exp()
                self.table[split, 0] += len(rows)
                self.table[split, 1] += float((p * log_p).sum())
                self.table[split, 2:] += p.sum(0).numpy()


def score_of(table: np.ndarray) -> tuple[float, float]:
    """Return the score from a table (S, 2 + C) of `ScoreSums`: its mean and standard deviation over the splits.

    The score of a split is exp of the mean divergence between an image's classes and those of the split; splits are
    consecutive images, so a class-sorted set scores too low. Raises ValueError when the table has seen no images.
    """
    counts, entropies, totals = table[:, 0], table[:, 1], table[:, 2:]
    seen = counts > 0
    if not seen.any():
        raise ValueError("an Inception score needs at least one image")
    means = totals[seen] / counts[seen, None]
    # A class that no image of the split can show has the mean 0 and adds nothing.
    logs = np.log(np.clip(means, np.finfo(float).tiny, None))
    scores = np.exp(entropies[seen] / counts[seen] - (means * logs).sum(1))
    return float(scores.mean()), float(scores.std())
