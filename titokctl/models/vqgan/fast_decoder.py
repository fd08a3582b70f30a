"""MaskGIT-VQGAN's decoder for inference: channels-last memory, and 4/9 of the operations where it doubles the picture.

Letters: B batch, C channels, H x W places.
"""

import torch
from torch import nn
from torch.nn import functional as F

from titokctl.models.vqgan.layers import ResBlock
from titokctl.models.vqgan.vqgan import VqganDecoder

# Rows of a doubled picture that fall on the same row of the small one share it, so their kernel rows add up. Row k of
# the 4-row kernel of a transposed convolution (stride 2, padding 1) is the sum of these rows of the 3-row kernel.
_ROWS = ((0.0, 0.0, 1.0), (0.0, 1.0, 1.0), (1.0, 1.0, 0.0), (1.0, 0.0, 0.0))


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


def doubling_kernel(weight: torch.Tensor) -> torch.Tensor:
    """The kernel of the transposed convolution that equals doubling by repetition and then a convolution with `weight`.

    Every output place meets 2 x 2 different inputs instead of 3 x 3 repeated ones. Exact but for the order of sums.

    Args:
        weight: (D, C, 3, 3) of a convolution with padding 1.

    Returns: (C, D, 4, 4), for stride 2 and padding 1.
    """
    rows = weight.new_tensor(_ROWS)
    return torch.einsum("ip,jq,dcpq->cdij", rows, rows, weight)


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
        self.kernel = _frozen(doubling_kernel(conv.weight.detach().float()), dtype)
        self.bias = _frozen(conv.bias, dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, C, H, W) -> (B, C, 2H, 2W)
        return F.conv_transpose2d(x, self.kernel, self.bias, stride=2, padding=1)


class _NormSilu(nn.Module):
    def __init__(self, norm: nn.GroupNorm, dtype: torch.dtype) -> None:
        super().__init__()
        self.groups, self.eps = norm.num_groups, norm.eps
        self.weight, self.bias = _frozen(norm.weight, dtype), _frozen(norm.bias, dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.silu(F.group_norm(x, self.groups, self.weight, self.bias, self.eps), inplace=True)


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
