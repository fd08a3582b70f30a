"""FID's Inception: the network of TensorFlow's 2015 graph (github mseitzer/pytorch-fid has its weights for torch).

It differs from the usual Inception v3 in its 1,008 classes, in average pools that don't count padding, and in a max
pool in its last block. Images are resized to 299 px as TensorFlow 1 did, or as two other programs do (`RESIZES`).

Letters: B batch, C channels, H and W height and width of a map.

Inference only: every batch norm is already folded into the convolution before it (`weights.feature_networks` does
that). Names are those of the published table in lower case, without `.conv`.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INPUT_SIZE = 299
POOL_WIDTH = 2048
SPATIAL_WIDTH = 7 * 17 * 17
NUM_CLASSES = 1008
BATCH_NORM_EPS = 1e-3
_SPATIAL_CHANNELS = 7

Size = int | tuple[int, int]
Resize = Literal["tf1", "pytorch", "clean"]


class InceptionFeatures(NamedTuple):
    """Outputs of one forward pass, all float32.

    `pool_64` to `pool_2048` are averages over the map behind the first and second max pool, Mixed_6e and Mixed_7c;
    `spatial` (B, 2023) are the first 7 channels of Mixed_6d.branch1x1, channel last (sFID); `logits_unbiased`
    (B, 1008) is pool_2048 times the classifier's weights without its bias (Inception score).
    """

    pool_64: Tensor
    pool_192: Tensor
    pool_768: Tensor
    pool_2048: Tensor
    spatial: Tensor
    logits_unbiased: Tensor
    logits: Tensor


class ConvReLU(nn.Conv2d):
    """A convolution with bias, and ReLU."""

    def __init__(self, width_in: int, width_out: int, kernel: Size, stride: int = 1, padding: Size = 0) -> None:
        super().__init__(width_in, width_out, kernel, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(super().forward(x))


def _wide(width_in: int, width_out: int) -> ConvReLU:  # 1 x 7
    return ConvReLU(width_in, width_out, (1, 7), padding=(0, 3))


def _tall(width_in: int, width_out: int) -> ConvReLU:  # 7 x 1
    return ConvReLU(width_in, width_out, (7, 1), padding=(3, 0))


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class Mixed5(nn.Module):
    """Blocks on the 35 x 35 grid."""

    def __init__(self, width_in: int, pool_width: int) -> None:
        super().__init__()
        self.branch1x1 = ConvReLU(width_in, 64, 1)
        self.branch5x5_1 = ConvReLU(width_in, 48, 1)
        self.branch5x5_2 = ConvReLU(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = ConvReLU(width_in, 64, 1)
        self.branch3x3dbl_2 = ConvReLU(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = ConvReLU(96, 96, 3, padding=1)
        self.branch_pool = ConvReLU(width_in, pool_width, 1)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, 35, 35) -> (B, 224 + pool_width, 35, 35)
        b5 = self.branch5x5_2(self.branch5x5_1(x))
        b3 = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), b5, b3, self.branch_pool(_average(x))], 1)


class Mixed6a(nn.Module):
    """From 35 x 35 to 17 x 17."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3 = ConvReLU(288, 384, 3, stride=2)
        self.branch3x3dbl_1 = ConvReLU(288, 64, 1)
        self.branch3x3dbl_2 = ConvReLU(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = ConvReLU(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:  # (B, 288, 35, 35) -> (B, 768, 17, 17)
        b3 = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), b3, F.max_pool2d(x, 3, stride=2)], 1)


class Mixed6(nn.Module):
    """Blocks on the 17 x 17 grid, with 7 x 7 filters in two or four thin steps."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch1x1 = ConvReLU(768, 192, 1)
        self.branch7x7_1 = ConvReLU(768, width, 1)
        self.branch7x7_2 = _wide(width, width)
        self.branch7x7_3 = _tall(width, 192)
        self.branch7x7dbl_1 = ConvReLU(768, width, 1)
        self.branch7x7dbl_2 = _tall(width, width)
        self.branch7x7dbl_3 = _wide(width, width)
        self.branch7x7dbl_4 = _tall(width, width)
        self.branch7x7dbl_5 = _wide(width, 192)
        self.branch_pool = ConvReLU(768, 192, 1)

    def parts(self, x: Tensor) -> list[Tensor]:  # (B, 768, 17, 17) -> 4 x (B, 192, 17, 17)
        b7 = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        b77 = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        b77 = self.branch7x7dbl_5(self.branch7x7dbl_4(b77))
        return [self.branch1x1(x), b7, b77, self.branch_pool(_average(x))]

    def forward(self, x: Tensor) -> Tensor:  # (B, 768, 17, 17) -> (B, 768, 17, 17)
        return torch.cat(self.parts(x), 1)


class Mixed7a(nn.Module):
    """From 17 x 17 to 8 x 8."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1 = ConvReLU(768, 192, 1)
        self.branch3x3_2 = ConvReLU(192, 320, 3, stride=2)
        self.branch7x7x3_1 = ConvReLU(768, 192, 1)
        self.branch7x7x3_2 = _wide(192, 192)
        self.branch7x7x3_3 = _tall(192, 192)
        self.branch7x7x3_4 = ConvReLU(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:  # (B, 768, 17, 17) -> (B, 1280, 8, 8)
        b3 = self.branch3x3_2(self.branch3x3_1(x))
        b7 = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([b3, b7, F.max_pool2d(x, 3, stride=2)], 1)


class Mixed7(nn.Module):
    """Blocks on the 8 x 8 grid; the last one pools by maximum, an oddity of the 2015 graph."""

    def __init__(self, width_in: int, max_pool: bool) -> None:
        super().__init__()
        self.branch1x1 = ConvReLU(width_in, 320, 1)
        self.branch3x3_1 = ConvReLU(width_in, 384, 1)
        self.branch3x3_2a = ConvReLU(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = ConvReLU(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = ConvReLU(width_in, 448, 1)
        self.branch3x3dbl_2 = ConvReLU(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = ConvReLU(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = ConvReLU(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = ConvReLU(width_in, 192, 1)
        self.max_pool = max_pool

    def forward(self, x: Tensor) -> Tensor:  # (B, C, 8, 8) -> (B, 2048, 8, 8)
        b3 = self.branch3x3_1(x)
        b33 = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self.max_pool else _average(x)
        wide_and_tall = [self.branch3x3_2a(b3), self.branch3x3_2b(b3), self.branch3x3dbl_3a(b33)]
        return torch.cat([self.branch1x1(x), *wide_and_tall, self.branch3x3dbl_3b(b33), self.branch_pool(pooled)], 1)


def _as_adm(images: Tensor) -> Tensor:
    return (resize_as_tensorflow_1(images, INPUT_SIZE) - 128) / 128


def _as_pytorch_fid(images: Tensor) -> Tensor:
    x = F.interpolate(images / 255, (INPUT_SIZE, INPUT_SIZE), mode="bilinear", align_corners=False)
    return 2 * x - 1


def _as_clean_fid(images: Tensor) -> Tensor:
    # Pillow's bicubic on float images, which neither rounds nor wraps, and widens its filter when it shrinks.
    size = (INPUT_SIZE, INPUT_SIZE)
    x = images
    if images.shape[2:] != size:
        x = F.interpolate(images, size, mode="bicubic", align_corners=False, antialias=True)
    return (x.clamp(0, 255) - 128) / 128


# How images (B, 3, H, W) float32 in [0, 255] become the network's input (B, 3, 299, 299) in about [-1, 1].
RESIZES: dict[Resize, Callable[[Tensor], Tensor]] = {
    "tf1": _as_adm,  # TensorFlow 1: the ADM evaluator, torch-fidelity, and the original FID
    "pytorch": _as_pytorch_fid,  # github mseitzer/pytorch-fid, commit 1232cd6: half-pixel centres, no antialias
    "clean": _as_clean_fid,  # clean-fid (arXiv 2104.11222), mode "clean"
}


class Inception(nn.Module):
    """FID's feature network."""

    def __init__(self) -> None:
        super().__init__()
        self.conv2d_1a_3x3 = ConvReLU(3, 32, 3, stride=2)
        self.conv2d_2a_3x3 = ConvReLU(32, 32, 3)
        self.conv2d_2b_3x3 = ConvReLU(32, 64, 3, padding=1)
        self.conv2d_3b_1x1 = ConvReLU(64, 80, 1)
        self.conv2d_4a_3x3 = ConvReLU(80, 192, 3)
        self.mixed_5b, self.mixed_5c, self.mixed_5d = Mixed5(192, 32), Mixed5(256, 64), Mixed5(288, 64)
        self.mixed_6a = Mixed6a()
        self.mixed_6b, self.mixed_6c, self.mixed_6d, self.mixed_6e = (Mixed6(w) for w in (128, 160, 160, 192))
        self.mixed_7a = Mixed7a()
        self.mixed_7b, self.mixed_7c = Mixed7(1280, max_pool=False), Mixed7(2048, max_pool=True)
        self.fc = nn.Linear(POOL_WIDTH, NUM_CLASSES)

    def forward(self, images: Tensor, resize: Resize = "tf1") -> InceptionFeatures:
        """Features of images (B, 3, H, W) float32 in [0, 255], of any size; computed in the weights' dtype."""
        x = RESIZES[resize](images).to(self.fc.weight.dtype)  # (B, 3, 299, 299)
        if self.conv2d_1a_3x3.weight.is_contiguous(memory_format=torch.channels_last):
            x = x.contiguous(memory_format=torch.channels_last)
        x = self.conv2d_2b_3x3(self.conv2d_2a_3x3(self.conv2d_1a_3x3(x)))  # (B, 64, 147, 147)
        x = F.max_pool2d(x, 3, stride=2)  # (B, 64, 73, 73)
        pool_64 = _mean(x)
        x = F.max_pool2d(self.conv2d_4a_3x3(self.conv2d_3b_1x1(x)), 3, stride=2)  # (B, 192, 35, 35)
        pool_192 = _mean(x)
        x = self.mixed_5d(self.mixed_5c(self.mixed_5b(x)))  # (B, 288, 35, 35)
        x = self.mixed_6c(self.mixed_6b(self.mixed_6a(x)))  # (B, 768, 17, 17)
        parts = self.mixed_6d.parts(x)
        spatial = parts[0][:, :_SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1).float()  # (B, 2023)
        x = self.mixed_6e(torch.cat(parts, 1))  # (B, 768, 17, 17)
        pool_768 = _mean(x)
        x = self.mixed_7c(self.mixed_7b(self.mixed_7a(x)))  # (B, 2048, 8, 8)
        pool_2048 = _mean(x)
        unbiased = F.linear(pool_2048, self.fc.weight.float())  # (B, 1008)
        return InceptionFeatures(
            pool_64, pool_192, pool_768, pool_2048, spatial, unbiased, unbiased + self.fc.bias.float()
        )


def resize_as_tensorflow_1(images: Tensor, size: int) -> Tensor:
    """Bilinear resize with align_corners=False, no half-pixel centres and no antialiasing, as TensorFlow 1 did.

    Args:
        images: (B, 3, H, W) float.
        size: height and width of the result; pixel i samples the source at i * H / size.

    Returns:
        (B, 3, size, size) in the dtype of the images.
    """
    for axis in (3, 2):  # along rows first, as TensorFlow adds up
        images = _interpolated(images, axis, size)
    return images


def _interpolated(x: Tensor, axis: int, size: int) -> Tensor:
    length = x.shape[axis]
    place = torch.arange(size, device=x.device, dtype=torch.float32) * (length / size)
    low = place.long().clamp(max=length - 1)
    shape = [1] * x.ndim
    shape[axis] = size
    fraction = (place - low).to(x.dtype).view(shape)
    start = x.index_select(axis, low)
    return start + (x.index_select(axis, (low + 1).clamp(max=length - 1)) - start) * fraction


def _mean(x: Tensor) -> Tensor:
    return x.float().mean((2, 3))
