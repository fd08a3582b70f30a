"""LPIPS, a distance of pictures that agrees with people's judgement (arXiv 1801.03924), on VGG16's maps.

Letters: B batch, C channels, S image size, H and W height and width of a map.
Source: github richzhang/PerceptualSimilarity, version 0.1; VGG16 with torchvision's names.
"""

import torch
from torch import nn

from titokctl.models.imagenet import normalized

_BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
WIDTHS = tuple(block[-1] for block in _BLOCKS)
_EPS = 1e-10


class Lpips(nn.Module):
    """The squared difference of five maps whose channels have unit length, weighted by channel, averaged over places.

    `features` are VGG16's convolutions; `channel_weights` are what was learned from people.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(*_layers())
        self.channel_weights = nn.ParameterList(torch.ones(width) for width in WIDTHS)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """(B,) float32 distances of images (B, 3, S, S) float32 in [0, 1], S at least 16; 0 for equal ones."""
        return self.distance(self.maps(a), self.maps(b))

    def maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        """VGG16's maps relu1_2, 2_2, 3_3, 4_3, 5_3 of images (B, 3, S, S): (B, C, H, W), of unit length, float32."""
        # The published shift and scale of pictures in [-1, 1] are ImageNet's mean and deviation of those in [0, 1].
        x = normalized(images, next(self.parameters()).dtype)
        ends = []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                ends.append(x)
            x = layer(x)
        return [_unit(end.float()) for end in (*ends, x)]

    def distance(self, a: list[torch.Tensor], b: list[torch.Tensor]) -> torch.Tensor:
        """(B,) float32 distances of pictures with these `maps`."""
        triples = zip(a, b, self.channel_weights, strict=True)
        # The mean over places first: what is left to weigh is small.
        each = [((x - y).square().mean((2, 3)) * weight).sum(1) for x, y, weight in triples]
        return torch.stack(each).sum(0)


def _layers() -> list[nn.Module]:
    """VGG16 up to relu5_3: pooling in front of every block but the first."""
    layers: list[nn.Module] = []
    width = 3
    for block in _BLOCKS:
        if layers:
            layers.append(nn.MaxPool2d(2))
        for wider in block:
            layers += [nn.Conv2d(width, wider, 3, padding=1), nn.ReLU(inplace=True)]
            width = wider
    return layers


def _unit(x: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) with channels of length 1 in every place. A place that is all zero stays so and has gradient 0."""
    return x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + _EPS)
