"""EfficientNet-Lite0 and -Lite2 (github tensorflow/tpu, models/official/efficientnet/lite), small feature networks.

Letters: B batch, C channels, H and W height and width of a map.

Inference only: every batch norm is already folded into the convolution before it (`weights.feature_networks` does
that), so a layer is a convolution with a bias.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEATURE_WIDTH = 1280
BATCH_NORM_EPS = 1e-3
_STEM_WIDTH = 32


class Stage(NamedTuple):
    """A run of inverted-residual blocks; only the first one has the stride."""

    expansion: int
    kernel: int
    width: int
    repeats: int
    stride: int


class Variant(NamedTuple):
    """A network of the family: its name, the edge in pixels that it was trained at, and its blocks."""

    name: str
    input_size: int
    stages: tuple[Stage, ...]


LITE0 = Variant(
    "EfficientNet-Lite0",
    224,
    (
        Stage(1, 3, 16, 1, 1),
        Stage(6, 3, 24, 2, 2),
        Stage(6, 5, 40, 2, 2),
        Stage(6, 3, 80, 3, 2),
        Stage(6, 5, 112, 3, 1),
        Stage(6, 5, 192, 4, 2),
        Stage(6, 3, 320, 1, 1),
    ),
)
# 1.1 times the widths, in multiples of 8, and 1.2 times the repeats, rounded up; the first and last stage keep theirs.
LITE2 = Variant(
    "EfficientNet-Lite2",
    260,
    (
        Stage(1, 3, 16, 1, 1),
        Stage(6, 3, 24, 3, 2),
        Stage(6, 5, 48, 3, 2),
        Stage(6, 3, 88, 4, 2),
        Stage(6, 5, 120, 4, 1),
        Stage(6, 5, 208, 5, 2),
        Stage(6, 3, 352, 1, 1),
    ),
)


class SameConv(nn.Conv2d):
    """A convolution with bias under TensorFlow's SAME padding: the odd pixel goes to the right and the bottom."""

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, C', ceil(H / stride), ceil(W / stride))
        return self._conv_forward(self._padded(x), self.weight, self.bias)

    def relu6(self, x: Tensor) -> Tensor:  # shapes as above
        """The convolution and its ReLU6, at once where oneDNN can: 0.7 of the time with AMX, the same bits."""
        if not _joins(x):
            return F.relu6(self(x), inplace=True)
        shape = (self.padding, self.stride, self.dilation, self.groups)
        joined = torch.ops.mkldnn._convolution_pointwise
        return joined(self._padded(x), self.weight, self.bias, *shape, "hardtanh", [0.0, 6.0], "")

    def _padded(self, x: Tensor) -> Tensor:
        return x if self.stride == (1, 1) else _pad_same(x, self.kernel_size[0], self.stride[0])


def _joins(x: Tensor) -> bool:
    """True for bf16 on a CPU outside of training; in float32 the last bits would differ from those of two operations.

    The operation is the one that torch's compiler uses. It has no documentation, so it may be missing.
    """
    is_plain = x.device.type == "cpu" and x.dtype == torch.bfloat16 and not torch.is_grad_enabled()
    return is_plain and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


def _pad_same(x: Tensor, kernel: int, stride: int) -> Tensor:
    pads = [max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in (x.shape[3], x.shape[2])]
    return F.pad(x, [side for total in pads for side in (total // 2, total - total // 2)])


def _conv(width_in: int, width_out: int, kernel: int, stride: int = 1, groups: int = 1) -> SameConv:
    # With stride 1 and odd kernels SAME is symmetric, and the convolution pads by itself.
    padding = kernel // 2 if stride == 1 else 0
    return SameConv(width_in, width_out, kernel, stride, padding, groups=groups)


class InvertedResidual(nn.Module):
    """Widen (1x1), filter each channel (depthwise), narrow (1x1, linear); a skip where the shape stays."""

    def __init__(self, width_in: int, width_out: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        inner = width_in * expansion
        self.expand = _conv(width_in, inner, 1) if expansion > 1 else None
        self.depthwise = _conv(inner, inner, kernel, stride, groups=inner)
        self.project = _conv(inner, width_out, 1)
        self.has_skip = stride == 1 and width_in == width_out

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, C', H', W')
        y = x if self.expand is None else self.expand.relu6(x)  # (B, E C, H, W)
        y = self.depthwise.relu6(y)  # (B, E C, H', W')
        y = self.project(y)  # (B, C', H', W')
        return y.add_(x) if self.has_skip else y


class EfficientNetLite(nn.Module):
    """An ImageNet-1k classifier (Lite0: 4.65 M parameters, Lite2: 6.09 M), used for its 1,280 pooled features."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.variant = variant
        self.stem = _conv(3, _STEM_WIDTH, 3, stride=2)
        self.blocks = nn.ModuleList(_blocks(variant.stages))
        self.head = _conv(variant.stages[-1].width, FEATURE_WIDTH, 1)
        self.classifier = nn.Linear(FEATURE_WIDTH, 1000)

    def maps(self, images: Tensor) -> list[Tensor]:
        """The maps after the stem and after every block, for images (B, 3, H, W) float32 in [0, 1]."""
        out = [self._stem(images)]  # (B, 32, H/2, W/2)
        for block in self.blocks:
            out.append(block(out[-1]))
        return out

    def features(self, images: Tensor) -> Tensor:
        """Pooled features.

        Args:
            images: (B, 3, S, S) float32 in [0, 1], S the input size, whatever dtype the weights have.

        Returns:
            (B, 1280) float32.
        """
        x = self._stem(images)  # (B, 32, S/2, S/2)
        for block in self.blocks:
            x = block(x)  # (B, C, S/32, S/32) at the end
        x = self.head.relu6(x)  # (B, 1280, S/32, S/32)
        return x.float().mean((2, 3))  # (B, 1280)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 1000) of the ImageNet classes for images (B, 3, S, S) float32 in [0, 1]."""
        return self.classifier(self.features(images).to(self.classifier.weight.dtype))

    def _stem(self, images: Tensor) -> Tensor:
        # In float32 up to here: bf16 would round the pixels themselves.
        x = ((images - 0.5) / 0.5).to(self.stem.weight.dtype)
        return self.stem.relu6(x)


def _blocks(stages: tuple[Stage, ...]) -> list[InvertedResidual]:
    blocks = []
    width = _STEM_WIDTH
    for stage in stages:
        for i in range(stage.repeats):
            stride = stage.stride if i == 0 else 1
            blocks.append(InvertedResidual(width, stage.width, stage.expansion, stage.kernel, stride))
            width = stage.width
    return blocks
