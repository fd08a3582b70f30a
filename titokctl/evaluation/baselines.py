"""Baselines of a tokenizer's PSNR: the mean colour, PCA with as many numbers, and what as many bits could hold.

All PSNRs are pooled over the images, as `reconstruct` does. Letters: n images, S their edge.
"""

import numpy as np
import torch

from titokctl.evaluation.reconstruction import psnr

_AXES = 320  # principal axes that are found; the rest of the variance counts as lost
_ROUNDS = 4
_HALVINGS = 60


def mean_colour_psnr(pixels: np.ndarray) -> float:
    """Return the PSNR in dB of images (n, S, S, 3) uint8 replaced by their mean colours."""
    images = pixels.astype(np.float32)
    return psnr(float(np.mean(np.square(images - images.mean(axis=(1, 2), keepdims=True)))))


class PrincipalAxes:
    """The principal axes of a set of images, found by random projection.

    Args:
        training: (n, S, S, 3) uint8; at most 320 axes are found, and fewer than n.
    """

    def __init__(self, training: np.ndarray) -> None:
        x = torch.from_numpy(training.reshape(len(training), -1)).float()
        self._mean = x.mean(0)
        x -= self._mean
        torch.manual_seed(0)
        _, _, self._axes = torch.svd_lowrank(x, q=min(_AXES, len(training) - 1), niter=_ROUNDS)

    def psnr_of_numbers(self, pixels: np.ndarray, numbers: int) -> float:
        """Return the PSNR in dB of images (n, S, S, 3) uint8 from their coordinates on the first `numbers` axes."""
        x, axes = self._centred(pixels), self._axes[:, :numbers]
        return psnr(float(torch.mean(torch.square(x - x @ axes @ axes.T))))

    def psnr_of_bits(self, pixels: np.ndarray, bits: float) -> float:
        """Return the PSNR in dB of a Gaussian with the images' variances on all axes, coded with `bits` an image.

        The rate-distortion function by reverse water-filling (Cover and Thomas, Elements of Information Theory,
        section 10.3.3). Images that are not Gaussian can be coded better, by who knows their structure.
        """
        x = self._centred(pixels)
        variances = (x @ self._axes).square().mean(0).double()
        lost = max(float(x.square().sum(1).mean()) - float(variances.sum()), 0.0)
        low, high = 1e-9, float(variances.max())
        for _ in range(_HALVINGS):
            level = (low * high) ** 0.5
            needed = float((0.5 * torch.log2(variances / level)).clamp(min=0).sum())
            low, high = (level, high) if needed > bits else (low, level)
        error = float(variances.clamp(max=high).sum()) + lost
        return psnr(error / x.shape[1])

    def _centred(self, pixels: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(pixels.reshape(len(pixels), -1)).float() - self._mean
