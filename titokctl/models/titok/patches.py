"""Images to rows of pixels and back.

Letters: B batch, h x w = N patches, p patch size.
"""

import math

import torch


def to_patches(images: torch.Tensor, size: int) -> torch.Tensor:
    """(B, 3, h p, w p) to (B, N, 3 p p); inside a patch colour comes first, as in a convolution's kernel."""
    tiles = images.unflatten(3, (-1, size)).unflatten(2, (-1, size))  # (B, 3, h, p, w, p)
    return tiles.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def from_patches(patches: torch.Tensor, size: int) -> torch.Tensor:
    """(B, N, p p 3) of a square grid to (B, 3, h p, w p); inside a patch colour comes last."""
    grid = math.isqrt(patches.shape[1])
    tiles = patches.unflatten(2, (size, size, 3)).unflatten(1, (grid, grid))  # (B, h, w, p, p, 3)
    return tiles.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def from_overlapping_patches(patches: torch.Tensor, size: int) -> torch.Tensor:
    """(B, N, 4 p p 3) to (B, 3, h p, w p), the weighted sum of patches of 2p x 2p at steps of p = `size`.

    p is even. A patch reaches p / 2 beyond its square on each side, where its weight falls to zero, so that there are
    no seams; what reaches beyond the picture is cut off. Inside a patch its quarters come first.
    """
    half = size // 2
    weights = hann(2 * size, patches.device, patches.dtype)
    quarters = patches.unflatten(2, (2, 2, -1))  # (B, N, 2, 2, p p 3)
    edge = math.isqrt(patches.shape[1]) * size
    out = patches.new_zeros(patches.shape[0], 3, edge + size, edge + size)
    for i in range(2):
        for j in range(2):
            window = weights[i * size : (i + 1) * size, None] * weights[j * size : (j + 1) * size]
            part = quarters[:, :, i, j] * window[..., None].expand(-1, -1, 3).flatten()
            out[:, :, i * size : i * size + edge, j * size : j * size + edge] += from_patches(part, size)
    return out[:, :, half : half + edge, half : half + edge]


def hann(length: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Return weights (length,) that rise from 0 and fall again; with those half a length away they add up to 1."""
    places = (torch.arange(length, device=device, dtype=torch.float32) + 0.5) * (math.pi / length)
    return places.sin().square().to(dtype)
