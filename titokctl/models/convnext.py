"""ConvNeXt-S (arXiv 2201.03545) with torchvision's names, so that its published weights load as they are.

Letters: B batch, C channels, H and W height and width of a map.
Inference and gradients for pictures only: the drop of whole blocks in training is left out.
"""

import torch
from torch import nn

from titokctl.models.imagenet import normalized

INPUT_SIZE = 224
_DEPTHS = (3, 3, 27, 3)
_WIDTHS = (96, 192, 384, 768)
_NUM_CLASSES = 1000
_EPS = 1e-6


class ConvNextSmall(nn.Module):
    """An ImageNet-1k classifier of 50.2 M parameters: four stages of depthwise 7 x 7 convolutions and MLPs."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(*_layers())
        self.classifier = nn.Sequential(
            _MapNorm(_WIDTHS[-1], eps=_EPS), nn.Flatten(1), nn.Linear(_WIDTHS[-1], _NUM_CLASSES)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, 1000) of images (B, 3, H, W) float32 in [0, 1], trained on 224 px; weights of any type."""
        x = normalized(images, next(self.parameters()).dtype)
        x = self.features(x)  # (B, 768, H / 32, W / 32)
        return self.classifier(x.mean((2, 3), keepdim=True))  # (B, 1000)


class _MapNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map (B, C, H, W)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class _Block(nn.Module):
    """Depthwise convolution, LayerNorm, MLP of four times the width, a scale for each channel; added to its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(width, width, 7, padding=3, groups=width),
            _MoveChannels(1, -1),
            nn.LayerNorm(width, eps=_EPS),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
            _MoveChannels(-1, 1),
        )
        self.layer_scale = nn.Parameter(torch.full((width, 1, 1), 1e-6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, C, H, W)
        return x + self.layer_scale * self.block(x)


class _MoveChannels(nn.Module):
    """Free of copies where maps lie channels last in memory."""

    def __init__(self, source: int, destination: int) -> None:
        super().__init__()
        self.source, self.destination = source, destination

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.movedim(self.source, self.destination)


def _layers() -> list[nn.Module]:
    """A convolution on patches of 4 x 4, and the stages, with a halving in front of each but the first."""
    layers: list[nn.Module] = [nn.Sequential(nn.Conv2d(3, _WIDTHS[0], 4, stride=4), _MapNorm(_WIDTHS[0], eps=_EPS))]
    before = _WIDTHS[0]
    for width, depth in zip(_WIDTHS, _DEPTHS, strict=True):
        if width != before:
            layers.append(nn.Sequential(_MapNorm(before, eps=_EPS), nn.Conv2d(before, width, 2, stride=2)))
        layers.append(nn.Sequential(*(_Block(width) for _ in range(depth))))
        before = width
    return layers
