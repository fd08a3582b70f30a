"""Inputs of the probes that read attributes, such as shape and colour, from samples.

A probe says which class a sample shows, not how sharp it is: kernel and Fréchet distances do that. It is therefore
trained on images as they are and on softened copies. Colours are read from the histogram of an image, and shapes from
the directions of its edges, because features of ImageNet classifiers hardly depend on hue and follow the texture
instead: on reconstructions whose colour anyone names, a probe of such features was right for half of the images, and
the histogram for all of them (docs/experiments.md has the figures for shapes).

Letters: n images, S pixels a side.
"""

import numpy as np
import torch
import torch.nn.functional as F

from titokctl.data.images import to_bytes, to_float

_SOFTEST, _SHARPEST = 0.22, 0.62  # of the sides that softened copies are scaled down to
_BINS = 6
_DIRECTIONS, _CELLS = 9, 8
_AT_ONCE = 256  # images, so that memory does not grow with their number


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


def edge_histogram(pixels: np.ndarray) -> np.ndarray:
    """Return histograms of the directions of edges in 8 x 8 cells of images (n, S, S, 3) uint8, (n, 576) float32.

    Each pixel adds the magnitude of its gradient, of the colour channel where that is largest, to the nearest two of 9
    orientations (modulo 180 degrees). The cells' means are square-rooted, so that faint edges count beside strong ones,
    and each image is scaled to unit length, so that its contrast does not matter. An image without edges is all zeros.

    Source: histograms of oriented gradients (Dalal and Triggs, CVPR 2005), normalised once for the whole image.
    """
    pieces = torch.from_numpy(np.ascontiguousarray(pixels)).split(_AT_ONCE)
    return np.concatenate([np.zeros((0, _DIRECTIONS * _CELLS**2), np.float32), *map(_edges, pieces)])


def _edges(pixels: torch.Tensor) -> np.ndarray:  # (n, S, S, 3) to (n, 576)
    images = F.pad(to_float(pixels), (1, 1, 1, 1), mode="replicate")  # (n, 3, S + 2, S + 2)
    across = images[..., 1:-1, 2:] - images[..., 1:-1, :-2]
    down = images[..., 2:, 1:-1] - images[..., :-2, 1:-1]
    size, colour = torch.hypot(across, down).max(1, keepdim=True)  # (n, 1, S, S)
    turn = torch.atan2(down.gather(1, colour), across.gather(1, colour)) * (_DIRECTIONS / torch.pi)
    lower = turn.floor()
    share, first = turn - lower, lower.long() % _DIRECTIONS
    maps = size.new_zeros(len(size), _DIRECTIONS, *size.shape[2:])  # (n, 9, S, S)
    maps.scatter_(1, first, (1 - share) * size)
    maps.scatter_add_(1, (first + 1) % _DIRECTIONS, share * size)
    return F.normalize(F.adaptive_avg_pool2d(maps, _CELLS).flatten(1).sqrt(), dim=1).numpy()
