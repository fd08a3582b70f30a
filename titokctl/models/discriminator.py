"""The discriminator of adversarial training: for 16 x 16 places of a picture, how real each looks.

Letters: B batch, C channels, S image size, H and W height and width of a map.
Source: bytedance/1d-tokenizer, commit 942a96f (stage 2); blurred downsampling from arXiv 1904.11486.
"""

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

GRID = 16
_WIDTHS = (1, 1, 2, 4)  # of the first convolution and of the three stages, times `channels`
_SLOPE = 0.1
_BLUR = (1.0, 3.0, 3.0, 1.0)


class Discriminator(nn.Module):
    """Three halvings of a picture of any size, the strongest response in each of 16 x 16 places, and a logit for it.

    Kernels have odd sizes but for the blur's, so that SAME padding with zeros is the same on both sides.

    Args:
        channels: of the first convolution, a multiple of 32; 128 as published.
    """

    def __init__(self, channels: int = 128) -> None:
        super().__init__()
        widths = [channels * factor for factor in _WIDTHS]
        self.conv_in = nn.Conv2d(3, widths[0], 5, padding=2)
        self.stages = nn.ModuleList(_Stage(before, after) for before, after in pairwise(widths))
        self.conv_middle = nn.Conv2d(widths[-1], widths[-1], 1)
        self.conv_out = nn.Conv2d(widths[-1], 1, 5, padding=2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, S, S) float, real ones in [0, 1], to logits (B, 1, 16, 16), positive for real."""
        x = _leaky(self.conv_in(images))  # (B, 128, S, S)
        for stage in self.stages:
            x = stage(x)  # (B, 512, S/8, S/8) at the end
        x = _strongest(x)  # (B, 512, 16, 16)
        return self.conv_out(_leaky(self.conv_middle(x)))  # (B, 1, 16, 16)


class _Stage(nn.Module):
    """A convolution, a blur that halves the map, GroupNorm, LeakyReLU."""

    kernel: torch.Tensor

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm = nn.GroupNorm(32, channels_out)
        taps = torch.tensor(_BLUR) / sum(_BLUR)
        self.register_buffer("kernel", torch.outer(taps, taps), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, C, H, W) -> (B, C', ceil(H / 2), ceil(W / 2))
        return _leaky(self.norm(self._halved(self.conv(x))))

    def _halved(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[2:]
        if height % 2 or width % 2:  # SAME padding gives the odd place to the right and the bottom
            x = F.pad(x, (0, width % 2, 0, height % 2))
        channels = x.shape[1]
        return F.conv2d(x, self.kernel.expand(channels, 1, -1, -1), stride=2, padding=1, groups=channels)


def _strongest(x: torch.Tensor) -> torch.Tensor:
    """Return the largest number of each of 16 x 16 parts of every map, (B, C, H, W) to (B, C, 16, 16).

    adaptive_max_pool2d has no deterministic backward pass on a GPU. Where torch is asked for deterministic kernels, the
    same numbers come from indexing, which has one.
    """
    if not torch.are_deterministic_algorithms_enabled():
        return F.adaptive_max_pool2d(x, GRID)
    rows, columns = (_windows(length, x.device) for length in x.shape[2:])
    parts = x[:, :, rows][..., columns]  # (B, C, 16, w, 16, w')
    return parts.transpose(3, 4).flatten(4).max(dim=-1).values


def _windows(length: int, device: torch.device) -> torch.Tensor:
    """Return the places that belong to each of 16 parts of `length` places, (16, w); short parts repeat their last."""
    part = torch.arange(GRID, device=device)[:, None]
    first, last = part * length // GRID, ((part + 1) * length + GRID - 1) // GRID - 1
    widest = -(-length // GRID) + (1 if length % GRID else 0)
    return torch.minimum(first + torch.arange(widest, device=device), last)


def _leaky(x: torch.Tensor) -> torch.Tensor:
    return F.leaky_relu(x, _SLOPE, inplace=True)
