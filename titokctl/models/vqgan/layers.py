"""Building blocks of MaskGIT-VQGAN's encoder and decoder.

Letters: B batch, C channels, H x W places.
"""

import torch
from torch import nn
from torch.nn import functional as F


class Pointwise(nn.Linear):
    """A 1x1 convolution, as a linear layer over channels: its bits don't depend on the number of threads."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, C, H, W)
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with the published eps; 32 groups, in smaller networks fewer.

    A group has at least 4 channels, as in the published network's finest level: with one channel a group no layer could
    tell an image's mean colour.
    """
    groups = max(1, min(32, channels // 4))
    while channels % groups:
        groups -= 1
    return nn.GroupNorm(groups, channels, eps=1e-6)


def conv3x3(channels_in: int, channels_out: int, bias: bool = True) -> nn.Conv2d:
    """At stride 1, TensorFlow's SAME padding is one place on every side."""
    return nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=bias)


class ResBlock(nn.Module):
    """norm, SiLU, convolution, twice, and a shortcut."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm1 = norm(channels_in)
        self.conv1 = conv3x3(channels_in, channels_out, bias=False)
        self.norm2 = norm(channels_out)
        self.conv2 = conv3x3(channels_out, channels_out, bias=False)
        self.shortcut = Pointwise(channels_out, channels_out, bias=False) if channels_in != channels_out else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, C, H, W)
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        # The released weights have their shortcut behind the second convolution, not around both.
        return h + (x if self.shortcut is None else self.shortcut(h))


def res_blocks(channels_in: int, channels_out: int, count: int) -> nn.Sequential:
    """`count` residual blocks, the first of which changes the number of channels."""
    return nn.Sequential(*(ResBlock(channels_in if i == 0 else channels_out, channels_out) for i in range(count)))
