"""MaskGIT-VQGAN's decoder for inference: channels-last memory, and 4/9 of the operations where it doubles the picture.

Letters: B batch, C channels, H x W places.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from titokctl.models.vqgan.layers import ResBlock
from titokctl.models.vqgan.vqgan import VqganDecoder

# Rows of a doubled picture that repeat one row of the small one share it, so their kernel rows add up: for the upper
# and the lower of two output rows, which of the 3 kernel rows fall on each of the 2 small rows they meet.
_ROWS = (((1.0, 0.0, 0.0), (0.0, 1.0, 1.0)), ((1.0, 1.0, 0.0), (0.0, 0.0, 1.0)))
_PIECE = 1024  # places that are summed at once


class FastVqganDecoder(nn.Module):
    """The same function as the decoder it is made from, in `dtype`; frozen.

    On a CPU it takes one image after the other: their activations stay in the cache, the memory needed does not grow
    with the batch, and an image's pixels don't depend on it.
    """

    def __init__(self, decoder: VqganDecoder, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.conv_in = _Convolution(decoder.conv_in, dtype)
        self.middle = _blocks(decoder.middle, dtype)
        self.levels = nn.ModuleList(_blocks(level, dtype) for level in decoder.levels)
        self.doublings = nn.ModuleList(_Doubling(conv, dtype) for conv in decoder.upsample)
        self.norm_out = _NormSilu(decoder.norm_out, dtype)
        self.conv_out = _Convolution(decoder.conv_out, dtype)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) to float32 pixels (B, 3, H, W), not clamped."""
        with torch.autocast(vectors.device.type, enabled=False):
            parts = vectors.split(1) if vectors.device.type == "cpu" else (vectors,)
            return torch.cat([self._pixels(part).float() for part in parts])

    def _pixels(self, vectors: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(vectors.to(self.dtype, memory_format=torch.channels_last))
        x = self.middle(x)
        for i, level in enumerate(self.levels):
            x = level(x)
            if i < len(self.doublings):
                x = self.doublings[i](x)
        return self.conv_out(self.norm_out(x))


def doubling_kernels(weight: torch.Tensor) -> torch.Tensor:
    """Kernels for `doubled`: every output place meets 2 x 2 different inputs instead of 3 x 3 repeated ones.

    Args:
        weight: (D, C, 3, 3) of the convolution with padding 1 that follows a doubling by repetition.

    Returns: (4D, C, 2, 2): D of them for each of the four places that an input place becomes, row by row.
    """
    rows = weight.new_tensor(_ROWS)
    return torch.einsum("aip,bjq,dcpq->abdcij", rows, rows, weight).flatten(0, 2)


def doubled(x: torch.Tensor, kernels: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) doubled by repetition and convolved, (B, D, 2H, 2W) channels-last; exact but for the order of sums.

    A transposed convolution does the same in one call, but its last bits depend on the number of threads.

    Args:
        kernels: as `doubling_kernels` gives them.
        bias: (4D,), the convolution's own four times.
    """
    batch, height, width = x.shape[0], x.shape[2], x.shape[3]
    parts = F.conv2d(x, kernels, bias, padding=1).chunk(4, 1)  # 4 x (B, D, H + 1, W + 1)
    shape = (batch, len(bias) // 4, 2 * height, 2 * width)
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    for place, part in enumerate(parts):
        row, column = divmod(place, 2)
        out[:, :, row::2, column::2] = part[:, :, row : row + height, column : column + width]
    return out


class _Convolution(nn.Module):
    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = _frozen(conv.weight, dtype)
        self.bias = None if conv.bias is None else _frozen(conv.bias, dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.weight, self.bias, padding=1)


class _Doubling(nn.Module):
    def __init__(self, conv: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        assert isinstance(conv, nn.Conv2d)
        assert conv.bias is not None
        self.kernels = _frozen(doubling_kernels(conv.weight.detach().float()), dtype)
        self.bias = _frozen(conv.bias.repeat(4), dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, C, H, W) -> (B, C, 2H, 2W)
        return doubled(x, self.kernels, self.bias)


class _NormSilu(nn.Module):
    def __init__(self, norm: nn.GroupNorm, dtype: torch.dtype) -> None:
        super().__init__()
        self.groups, self.eps = norm.num_groups, norm.eps
        self.weight, self.bias = _frozen(norm.weight, torch.float32), _frozen(norm.bias, torch.float32)
        self.own_sums = dtype == torch.bfloat16

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, C, H, W)
        if self.own_sums and x.device.type == "cpu":
            mean, variance = _group_statistics(x, self.groups)
            y = F.batch_norm(x, mean, variance, self.weight, self.bias, eps=self.eps)
        else:
            y = F.group_norm(x, self.groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)
        return F.silu(y, inplace=True)


def _group_statistics(x: torch.Tensor, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of one channels-last image's groups, for each channel (C,) float32.

    torch's own sums over channels-last memory depend on the number of threads, and so would a third of the pixels (by a
    level or two). Products with ones do not; their bfloat16 results are summed in float32, over many pieces.
    """
    channels, places = x.shape[1], x.shape[2] * x.shape[3]
    rows = x.permute(0, 2, 3, 1).reshape(-1, math.gcd(places, _PIECE), channels)
    ones = x.new_ones(1, 1, rows.shape[1]).expand(len(rows), -1, -1)
    sums = torch.stack([torch.bmm(ones, part).float().sum((0, 1)) for part in (rows, rows * rows)])  # (2, C)
    mean, square = sums.view(2, groups, -1).mean(-1).div(places).repeat_interleave(channels // groups, 1)
    return mean, (square - mean.square()).clamp(min=0)


class _Residual(nn.Module):
    def __init__(self, block: ResBlock, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm1, self.norm2 = _NormSilu(block.norm1, dtype), _NormSilu(block.norm2, dtype)
        self.conv1, self.conv2 = _Convolution(block.conv1, dtype), _Convolution(block.conv2, dtype)
        self.shortcut = _frozen(block.shortcut.weight, dtype) if block.shortcut is not None else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv2(self.norm2(self.conv1(self.norm1(x))))
        if self.shortcut is None:
            return h.add_(x)
        return h.add_(F.linear(h.movedim(1, -1), self.shortcut).movedim(-1, 1))


def _blocks(blocks: nn.Module, dtype: torch.dtype) -> nn.Sequential:
    return nn.Sequential(*(_Residual(block, dtype) for block in blocks.children() if isinstance(block, ResBlock)))


def _frozen(tensor: torch.Tensor, dtype: torch.dtype) -> nn.Parameter:
    layout = torch.channels_last if tensor.ndim == 4 else torch.contiguous_format
    return nn.Parameter(tensor.detach().to(dtype, memory_format=layout), requires_grad=False)
