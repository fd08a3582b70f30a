"""Inputs of the probes that read attributes, such as shape and colour, from samples.

A probe says which class a sample shows, not how sharp it is: kernel and Fréchet distances do that. It is therefore
trained on images as they are and on softened copies, and colours are read from the histogram of an image, because
features of ImageNet classifiers hardly depend on hue and follow the texture instead: on reconstructions whose colour
anyone names, a probe of such features was right for half of the images, and the histogram for all of them.

Letters: n images, S pixels a side.
"""

import numpy as np
import torch
import torch.nn.functional as F

from titokctl.data.images import to_bytes, to_float

_SOFTEST, _SHARPEST = 0.22, 0.62  # of the sides that softened copies are scaled down to
_BINS = 6


def softened(pixels: np.ndarray) -> np.ndarray:
    """Return copies of images (n, S, S, 3) uint8 without their detail, the same ones in every call.

    Each is scaled down to 22 to 62 % of its side by a triangle filter, and up again by a bicubic one.
    """
    side = pixels.shape[1]
    least, most = (max(1, round(share * side)) for share in (_SOFTEST, _SHARPEST))
    sides = np.random.default_rng(0).integers(least, most + 1, len(pixels))
    copies = np.empty_like(pixels)
    for s in np.unique(sides).tolist():
        chosen = np.flatnonzero(sides == s)
        images = to_float(torch.from_numpy(pixels[chosen]))
        small = F.interpolate(images, size=(s, s), mode="bilinear", antialias=True)
        copies[chosen] = to_bytes(F.interpolate(small, size=(side, side), mode="bicubic")).numpy()
    return copies


def colour_histogram(pixels: np.ndarray) -> np.ndarray:
    """Return the square roots of the shares of 6 x 6 x 6 ranges of RGB in images (n, S, S, 3) uint8, (n, 216) float32.

    The root lets a small solid count beside a large background.
    """
    levels = pixels.reshape(len(pixels), -1, 3).astype(np.int64) * _BINS // 256
    places = (levels[..., 0] * _BINS + levels[..., 1]) * _BINS + levels[..., 2]
    places += np.arange(len(pixels))[:, None] * _BINS**3
    counts = np.bincount(places.ravel(), minlength=len(pixels) * _BINS**3).reshape(-1, _BINS**3)
    return np.sqrt(counts / max(1, places.shape[1])).astype(np.float32)
