"""Reconstructions, and how near they are to their originals: PSNR and SSIM.

Letters: n images, H and W height and width.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from titokctl.data.images import to_bytes, to_float
from titokctl.models.titok.tokenizer import TiTok
from titokctl.models.vqgan.vqgan import MaskGitVqgan

_PEAK = 255.0
_EXACT_PSNR_DB = 100.0
_WINDOW = 11
_SIGMA = 1.5
_C1, _C2 = (0.01 * _PEAK) ** 2, (0.03 * _PEAK) ** 2


@torch.inference_mode()
def reconstructed(tokenizer: TiTok | MaskGitVqgan, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, S, S, 3) uint8 through a tokenizer: what its `tokenize` gives, and the pixels made of it, likewise."""
    images = to_float(torch.from_numpy(pixels).to(next(tokenizer.parameters()).device))
    tokens = tokenizer.tokenize(images)
    return tokens.cpu().numpy(), to_bytes(tokenizer.detokenize(tokens)).cpu().numpy()


@dataclass(frozen=True)
class ReconstructionScore:
    """PSNR in dB of the error pooled over all images and its mean over images; mean SSIM, None below 11 px."""

    images: int
    psnr_pooled: float
    psnr_mean: float
    ssim: float | None


class ReconstructionSums:
    """Running sums over pairs of originals and reconstructions.

    `totals` (5,) float64 are all of them, so that parts of a set can be added up: images, values, squared error, PSNR
    and SSIM (NaN where images are too small for it).
    """

    def __init__(self) -> None:
        self.totals = np.zeros(5)

    def add(self, originals: np.ndarray, reconstructions: np.ndarray) -> None:
        """Take in pairs, (n, H, W, 3) uint8 each. Raises ValueError for other shapes or types."""
        for array in (originals, reconstructions):
            if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3 or array.shape != originals.shape:
                shapes = f"{originals.shape} {originals.dtype} and {reconstructions.shape} {reconstructions.dtype}"
                raise ValueError(f"expected two arrays (n, H, W, 3) uint8 of one shape, not {shapes}")
        a, b = (torch.from_numpy(np.ascontiguousarray(x)).double() for x in (originals, reconstructions))
        errors = (a - b).square().sum((1, 2, 3))  # (n,)
        values = math.prod(originals.shape[1:])
        similarity = math.nan
        if min(originals.shape[1:3]) >= _WINDOW:
            similarity = float(ssim(a.permute(0, 3, 1, 2), b.permute(0, 3, 1, 2)).sum())
        in_db = sum(psnr(float(error) / values) for error in errors)
        self.totals += (len(a), len(a) * values, float(errors.sum()), in_db, similarity)

    def score(self) -> ReconstructionScore:
        """The scores of all pairs so far. Raises ValueError when there were none."""
        images, values, squared_error, in_db, similarity = self.totals.tolist()
        if not images:
            raise ValueError("no images were compared")
        mean_ssim = None if math.isnan(similarity) else similarity / images
        return ReconstructionScore(int(images), psnr(squared_error / values), in_db / images, mean_ssim)


def psnr(mean_squared_error: float) -> float:
    """Peak signal to noise in dB for values in [0, 255]; an exact copy counts as 100 dB, so that means stay finite."""
    if mean_squared_error <= 0:
        return _EXACT_PSNR_DB
    return min(10 * math.log10(_PEAK**2 / mean_squared_error), _EXACT_PSNR_DB)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004): Gaussian window of 11 x 11, sigma 1.5, inside the image, mean of RGB.

    Args:
        a, b: (n, 3, H, W) float in [0, 255], H and W at least 11.

    Returns:
        (n,), 1 for equal images.
    """
    mean_a, mean_b = _blur(a), _blur(b)
    variance_a = _blur(a * a) - mean_a * mean_a
    variance_b = _blur(b * b) - mean_b * mean_b
    covariance = _blur(a * b) - mean_a * mean_b
    numerator = (2 * mean_a * mean_b + _C1) * (2 * covariance + _C2)
    denominator = (mean_a**2 + mean_b**2 + _C1) * (variance_a + variance_b + _C2)
    return (numerator / denominator).mean((1, 2, 3))


def _blur(x: Tensor) -> Tensor:
    offsets = torch.arange(_WINDOW, dtype=x.dtype, device=x.device) - _WINDOW // 2
    line = torch.exp(-(offsets**2) / (2 * _SIGMA**2))
    line = (line / line.sum()).expand(x.shape[1], 1, 1, _WINDOW)
    return F.conv2d(F.conv2d(x, line, groups=x.shape[1]), line.transpose(2, 3), groups=x.shape[1])
