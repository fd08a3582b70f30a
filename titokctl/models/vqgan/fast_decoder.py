"""MaskGIT-VQGAN's decoder for inference: channels-last memory, and 4/9 of the operations where it doubles the picture.

Letters: B batch, C channels, H x W places.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from titokctl.models.fused import LowLinear, uses_triton
from titokctl.models.packed_layers import PackedConvolution, PackedLinear, can_pack, scaled_silu
from titokctl.models.vqgan.layers import ResBlock
from titokctl.models.vqgan.vqgan import VqganDecoder

# Rows of a doubled picture that repeat one row of the small one share it, so their kernel rows add up: for the upper
# and the lower of two output rows, which of the 3 kernel rows fall on each of the 2 small rows they meet.
_ROWS = (((1.0, 0.0, 0.0), (0.0, 1.0, 1.0)), ((1.0, 1.0, 0.0), (0.0, 0.0, 1.0)))
_PIECE = 1024  # places that are summed at once
_FEW_CHANNELS = 128


class FastVqganDecoder(nn.Module):
    """The same function as the decoder it is made from, in `dtype`; frozen.

    On a CPU it takes one image after the other: their activations stay in the cache, the memory needed does not grow
    with the batch, and an image's pixels don't depend on it.

    Args:
        on_cpu: use layers that only a CPU can run, where there are any for `dtype`.
    """

    def __init__(self, decoder: VqganDecoder, dtype: torch.dtype, on_cpu: bool = True) -> None:
        super().__init__()
        self.dtype, packs = dtype, on_cpu and can_pack(dtype)
        self.conv_in = _convolution(decoder.conv_in.weight, decoder.conv_in.bias, dtype, packs)
        self.middle = _blocks(decoder.middle, dtype, packs)
        self.levels = nn.ModuleList(_blocks(level, dtype, packs) for level in decoder.levels)
        self.doublings = nn.ModuleList(_Doubling(conv, dtype, packs) for conv in decoder.upsample)
        self.norm_out = NormSilu(decoder.norm_out, packs)
        self.conv_out = _convolution(decoder.conv_out.weight, decoder.conv_out.bias, dtype, packs)

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


def interleaved(corners: torch.Tensor) -> torch.Tensor:
    """Put the four places that each input place becomes beside each other.

    A transposed convolution would double in one call, but its last bits depend on the number of threads.

    Args:
        corners: (B, 4D, H + 1, W + 1), the picture convolved with `doubling_kernels` and padding 1.

    Returns: (B, D, 2H, 2W), channels-last; the doubled and convolved picture, exact but for the order of sums.
    """
    parts = corners.chunk(4, 1)  # 4 x (B, D, H + 1, W + 1)
    batch, channels, height, width = parts[0].shape[0], parts[0].shape[1], corners.shape[2] - 1, corners.shape[3] - 1
    out = corners.new_empty((batch, 2 * height, 2 * width, channels)).permute(0, 3, 1, 2)
    for place, part in enumerate(parts):
        row, column = divmod(place, 2)
        out[:, :, row::2, column::2] = part[:, :, row : row + height, column : column + width]
    return out


class _Convolution(nn.Module):
    """A frozen convolution with padding 1."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = _frozen(weight, dtype)
        self.bias = None if bias is None else _frozen(bias, dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.weight, self.bias, padding=1)


def _linear(layer: nn.Linear, dtype: torch.dtype, packs: bool) -> nn.Module:
    return PackedLinear(layer, dtype) if packs else LowLinear(layer, dtype)


def _convolution(weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype, packs: bool) -> nn.Module:
    return PackedConvolution(weight.detach().to(dtype), bias) if packs else _Convolution(weight, bias, dtype)


class _Doubling(nn.Module):
    def __init__(self, conv: nn.Module, dtype: torch.dtype, packs: bool) -> None:
        super().__init__()
        assert isinstance(conv, nn.Conv2d)
        assert conv.bias is not None
        kernels, bias = doubling_kernels(conv.weight.detach().float()), conv.bias.detach().repeat(4)
        # oneDNN's 2x2 convolution of few channels depends on the number of threads; the same as one product does not.
        few = packs and conv.in_channels < _FEW_CHANNELS
        self.small = _Product2x2(kernels, bias, dtype) if few else _convolution(kernels, bias, dtype, packs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, C, H, W) -> (B, D, 2H, 2W)
        return interleaved(self.small(x))


class _Product2x2(nn.Module):
    """A 2x2 convolution with padding 1 as one product over gathered neighbours."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        outputs, inputs = weight.shape[:2]
        linear = nn.Linear(4 * inputs, outputs)
        with torch.no_grad():
            linear.weight.copy_(weight.permute(0, 2, 3, 1).reshape(outputs, -1))
            linear.bias.copy_(bias)
        self.linear = PackedLinear(linear, dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, C, H, W) -> (B, D, H + 1, W + 1)
        height, width = x.shape[2] + 1, x.shape[3] + 1
        padded = F.pad(x, (1, 1, 1, 1)).movedim(1, -1)  # (B, H + 2, W + 2, C)
        corners = [padded[:, i : i + height, j : j + width] for i in (0, 1) for j in (0, 1)]
        return self.linear(torch.cat(corners, -1)).movedim(-1, 1)


class NormSilu(nn.Module):
    """GroupNorm followed by SiLU."""

    def __init__(self, norm: nn.GroupNorm, packs: bool) -> None:
        super().__init__()
        self.groups, self.eps = norm.num_groups, norm.eps
        self.weight, self.bias = _frozen(norm.weight, torch.float32), _frozen(norm.bias, torch.float32)
        self.packs = packs

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, C, H, W)
        if x.dtype != torch.float32 and uses_triton(x.device):
            from titokctl.models.triton_kernels import group_norm_silu

            x = x.contiguous(memory_format=torch.channels_last)
            return group_norm_silu(x, self.groups, self.weight, self.bias, self.eps)
        if not self.packs:
            y = F.group_norm(x, self.groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)
            return F.silu(y, inplace=True)
        mean, variance = _group_statistics(x, self.groups)
        if x.dtype == torch.float32:
            scale = self.weight * (variance + self.eps).rsqrt()
            return scaled_silu(x, scale, self.bias - mean * scale)
        return F.silu(F.batch_norm(x, mean, variance, self.weight, self.bias, eps=self.eps), inplace=True)


def _group_statistics(x: torch.Tensor, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of one channels-last image's groups, for each channel (C,) float32.

    The sums of torch's GroupNorm depend on the number of threads, and so would a third of the pixels (by a level or
    two). Pooling does not, and in bfloat16, where it would round too often, neither do products with ones.
    """
    means = torch.stack([_channel_means(part) for part in (x, x * x)])  # (2, C)
    mean, square = means.view(2, groups, -1).mean(-1).repeat_interleave(x.shape[1] // groups, 1)
    return mean, (square - mean.square()).clamp(min=0)


def _channel_means(x: torch.Tensor) -> torch.Tensor:
    """(1, C, H, W) channels-last to (C,) float32."""
    if x.dtype == torch.float32:
        while x.shape[2] * x.shape[3] > 1:
            x = F.avg_pool2d(x, (_window(x.shape[2]), _window(x.shape[3])))
        return x.flatten()
    places = x.shape[2] * x.shape[3]
    rows = x.permute(0, 2, 3, 1).reshape(-1, math.gcd(places, _PIECE), x.shape[1])
    ones = x.new_ones(1, 1, rows.shape[1]).expand(len(rows), -1, -1)
    return torch.bmm(ones, rows).float().sum((0, 1)).div(places)


def _window(length: int) -> int:
    """Return the largest divisor of `length` up to 16; `length` itself where that is 1."""
    largest = max(n for n in range(1, min(length, 16) + 1) if length % n == 0)
    return largest if largest > 1 else length


class _Residual(nn.Module):
    def __init__(self, block: ResBlock, dtype: torch.dtype, packs: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = NormSilu(block.norm1, packs), NormSilu(block.norm2, packs)
        self.conv1, self.conv2 = (_convolution(c.weight, c.bias, dtype, packs) for c in (block.conv1, block.conv2))
        self.shortcut = None if block.shortcut is None else _linear(block.shortcut, dtype, packs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv2(self.norm2(self.conv1(self.norm1(x))))
        if self.shortcut is None:
            return h.add_(x)
        return h.add_(self.shortcut(h.movedim(1, -1)).movedim(-1, 1))


def _blocks(blocks: nn.Module, dtype: torch.dtype, packs: bool) -> nn.Sequential:
    return nn.Sequential(
        *(_Residual(block, dtype, packs) for block in blocks.children() if isinstance(block, ResBlock))
    )


def _frozen(tensor: torch.Tensor, dtype: torch.dtype) -> nn.Parameter:
    layout = torch.channels_last if tensor.ndim == 4 else torch.contiguous_format
    return nn.Parameter(tensor.detach().to(dtype, memory_format=layout), requires_grad=False)
