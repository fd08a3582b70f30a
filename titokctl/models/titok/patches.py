"""Images to rows of pixels and back.

Letters: B batch, h x w = N patches, p patch size.
"""

import torch


def to_patches(images: torch.Tensor, size: int) -> torch.Tensor:
    """(B, 3, h p, w p) to (B, N, 3 p p); inside a patch colour comes first, as in a convolution's kernel."""
    tiles = images.unflatten(3, (-1, size)).unflatten(2, (-1, size))  # (B, 3, h, p, w, p)
    return tiles.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def from_patches(patches: torch.Tensor, size: int) -> torch.Tensor:
    """(B, N, p p 3) of a square grid to (B, 3, h p, w p); inside a patch colour comes last."""
    grid = round(patches.shape[1] ** 0.5)
    tiles = patches.unflatten(2, (size, size, 3)).unflatten(1, (grid, grid))  # (B, h, w, p, p, 3)
    return tiles.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)
