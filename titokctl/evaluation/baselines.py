"""Baselines of a tokenizer's PSNR: the mean colour, PCA with as many numbers, and what as many bits could hold.

All PSNRs are pooled over the images, as `reconstruct` does. Letters: n images, S their edge.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from titokctl.data.order import spread_positions
from titokctl.distributed.group import Group
from titokctl.distributed.reduce import rows_on_main
from titokctl.evaluation.reconstruction import psnr
from titokctl.formats.metrics_log import MetricsLog

PCA, GAUSSIAN = "psnr_pca", "psnr_gaussian"
VALIDATION = "val_"  # before the names of held-out numbers in the log of a training

_AXES = 320  # principal axes that are found; the rest of the variance counts as lost
_ROUNDS = 4
_HALVINGS = 60
_MOST_IMAGES = 1024
_LARGEST_EDGE = 64


def mean_colour_psnr(pixels: np.ndarray) -> float:
    """Return the PSNR in dB of images (n, S, S, 3) uint8 replaced by their mean colours."""
    images = pixels.astype(np.float32)
    return psnr(float(np.mean(np.square(images - images.mean(axis=(1, 2), keepdims=True)))))


class PrincipalAxes:
    """The principal axes of a set of images, found by random projection.

    Args:
        training: (n, S, S, 3) uint8 or float32 in [0, 255]; at most 320 axes are found, and fewer than n.
    """

    def __init__(self, training: np.ndarray) -> None:
        x = torch.from_numpy(training.reshape(len(training), -1)).float()
        self._mean = x.mean(0)
        x = x - self._mean  # not in place: float32 images are the caller's
        with torch.random.fork_rng(devices=[]):  # training may be under way
            torch.manual_seed(0)
            _, _, self._axes = torch.svd_lowrank(x, q=most_axes(len(training)), niter=_ROUNDS)

    def psnr_of_numbers(self, pixels: np.ndarray, numbers: int) -> float:
        """Return the PSNR in dB of images (n, S, S, 3) uint8 from their coordinates on the first `numbers` axes."""
        return psnr(self.error_of_numbers(pixels, numbers))

    def error_of_numbers(self, pixels: np.ndarray, numbers: int) -> float:
        """Return the mean squared error of `psnr_of_numbers`."""
        x, axes = self._centred(pixels), self._axes[:, :numbers]
        return float(torch.mean(torch.square(x - x @ axes @ axes.T)))

    def psnr_of_bits(self, pixels: np.ndarray, bits: float) -> float:
        """Return the PSNR in dB of a Gaussian with the images' variances on all axes, coded with `bits` an image.

        The rate-distortion function by reverse water-filling (Cover and Thomas, Elements of Information Theory,
        section 10.3.3). Images that are not Gaussian can be coded better, by who knows their structure.
        """
        return psnr(self.error_of_bits(pixels, bits))

    def error_of_bits(self, pixels: np.ndarray, bits: float) -> float:
        """Return the mean squared error of `psnr_of_bits`."""
        x = self._centred(pixels)
        variances = (x @ self._axes).square().mean(0).double()
        lost = max(float(x.square().sum(1).mean()) - float(variances.sum()), 0.0)
        low, high = 1e-9, float(variances.max())
        for _ in range(_HALVINGS):
            level = (low * high) ** 0.5
            needed = float((0.5 * torch.log2(variances / level)).clamp(min=0).sum())
            low, high = (level, high) if needed > bits else (low, level)
        error = float(variances.clamp(max=high).sum()) + lost
        return error / x.shape[1]

    def _centred(self, pixels: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(pixels.reshape(len(pixels), -1)).float() - self._mean


def most_axes(images: int) -> int:
    """Return how many principal axes can be found in so many images."""
    return min(_AXES, images - 1)


@dataclass(frozen=True)
class SmallImages:
    """Images averaged over blocks of pixels.

    Args:
        pixels: (n, s, s, 3) float32 in [0, 255].
        lost: (n,) float64, the mean squared error of each image that averaging alone makes.
    """

    pixels: np.ndarray
    lost: np.ndarray

    def __getitem__(self, rows: slice) -> "SmallImages":
        """Return some of the images."""
        return SmallImages(self.pixels[rows], self.lost[rows])


class SmallImagesCollector:
    """Collects up to 1,024 images that are spread over a set, averaged to at most 64 pixels an edge.

    So memory and time are bounded for sets and images of any size. Principal axes of averaged images are axes of the
    images themselves, on which detail counts as lost.

    Args:
        total: number of images in the set.
        size: their edge S in pixels.
    """

    def __init__(self, total: int, size: int) -> None:
        self.positions = spread_positions(total, _MOST_IMAGES)
        self._block = next(
            block for block in range(1, size + 1) if size % block == 0 and size // block <= _LARGEST_EDGE
        )
        self._values = (size // self._block) ** 2 * 3
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, pixels: np.ndarray, positions: np.ndarray) -> None:
        """Take in images (n, S, S, 3) uint8 at `positions` (n,) of the set; others than the wanted ones are dropped."""
        rows = np.flatnonzero(np.isin(positions, self.positions))
        if not len(rows):
            return
        block, (n, size) = self._block, (len(rows), pixels.shape[1])
        images = pixels[rows].astype(np.float32).reshape(n, size // block, block, size // block, block, 3)
        small = images.mean(axis=(2, 4), keepdims=True)
        lost = np.square(images - small).mean(axis=(1, 2, 3, 4, 5), dtype=np.float64)
        self._parts.append((positions[rows, None].astype(np.int64), small.reshape(n, -1), lost[:, None]))

    def result(self, group: Group) -> SmallImages | None:
        """Return the images of all processes in the order of the set; None on all processes but the first."""
        empty = (np.empty((0, 1), np.int64), np.empty((0, self._values), np.float32), np.empty((0, 1)))
        mine = (np.concatenate(column) for column in zip(empty, *self._parts, strict=True))
        positions, small, lost = (rows_on_main(column, group) for column in mine)
        if positions is None or small is None or lost is None:
            return None
        order = np.argsort(positions[:, 0])
        edge = math.isqrt(self._values // 3)
        return SmallImages(small[order].reshape(-1, edge, edge, 3), lost[order, 0])


def shape_in_all(mine: Sequence[int], group: Group) -> tuple[int, ...]:
    """Return the shape of an image's tokens, which is () in processes that had no image."""
    return next((tuple(shape) for shape in group.from_all(list(mine)) if shape), ())


def linear_baselines(
    judged: SmallImages, tokens: Sequence[int], codebook_size: int | None, training: SmallImages | None = None
) -> dict[str, float]:
    """Return the PSNRs in dB by name: PCA with as many numbers as a tokenizer, and a Gaussian with as many bits.

    {} if there are too few images for as many axes; without the Gaussian if the tokenizer has no codebook.

    Args:
        judged: the images that the PSNRs are of.
        tokens: shape of what the tokenizer makes of an image: (K,), or (K, C) without a codebook.
        training: the images whose principal axes are used; without them, those of each half of `judged` for the other.
    """
    if not tokens:
        return {}
    pairs = [(training, judged)] if training else [(judged[::2], judged[1::2]), (judged[1::2], judged[::2])]
    numbers, errors = math.prod(tokens), np.zeros(2)
    bits = numbers * math.log2(codebook_size) if codebook_size else 0.0
    if not len(judged.lost) or numbers > min(most_axes(len(axes_of.lost)) for axes_of, _ in pairs):
        return {}
    for axes_of, images in pairs:
        axes, share = PrincipalAxes(axes_of.pixels), len(images.lost) / len(judged.lost)
        found = axes.error_of_numbers(images.pixels, numbers), axes.error_of_bits(images.pixels, bits)
        errors += share * (np.array(found) + images.lost.mean())
    return {PCA: psnr(errors[0])} | ({GAUSSIAN: psnr(errors[1])} if codebook_size else {})


def logged_baselines(log: MetricsLog) -> dict[str, float]:
    """Return the linear baselines in the log of a training, by name; {} without them."""
    newest = log.newest_values()
    return {name: newest[VALIDATION + name] for name in (PCA, GAUSSIAN) if VALIDATION + name in newest}


@dataclass
class HeldOutBaselines:
    """The linear baselines of the held-out images of a training run, computed once.

    Args:
        training: training images; on rank 0.
        found: the numbers by name, if an earlier start of the run computed them; {} if there are none.
    """

    training: SmallImages | None = None
    found: dict[str, float] | None = field(default=None)

    def compute(self, judged: SmallImages | None, tokens: Sequence[int], codebook_size: int | None) -> None:
        """Compute the numbers; other processes than the first have no images and get {}."""
        self.found = {}
        if judged is not None and self.training is not None:
            self.found = linear_baselines(judged, tokens, codebook_size, self.training)
        self.training = None
