"""Perceptual losses: how far apart two pictures are for a network that knows pictures.

Each is `loss(made, target) -> scalar` for images (B, 3, S, S) float32 in [0, 1], with gradients only for `made`; its
network is frozen and works in the type of its weights.

Letters: B batch, S image size.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from titokctl.models import convnext
from titokctl.models.convnext import ConvNextSmall
from titokctl.models.efficientnet_lite0 import STAGES, EfficientNetLite0
from titokctl.models.lpips import Lpips


class Lite0Perceptual(nn.Module):
    """Distance of the maps of EfficientNet-Lite0 after its stem and each of its stages, at the pictures' own size.

    Every map's squared difference is divided by the target's mean square, so that all depths count alike: 0 for equal
    pictures, about 1 where nothing of a map is right. It ranks a blur behind a shift by one pixel, as people do and
    squared error does not.
    """

    def __init__(self, network: EfficientNetLite0) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        ends = torch.cumsum(torch.tensor([stage.repeats for stage in STAGES]), 0)
        self._chosen = (0, *ends.tolist())  # positions in the list of maps

    def forward(self, made: Tensor, target: Tensor) -> Tensor:
        """0 for equal pictures; see the module for what goes in."""
        with torch.no_grad():
            wanted = self._maps(target)
        pairs = zip(self._maps(made), wanted, strict=True)
        return torch.stack([_relative(a, b) for a, b in pairs]).mean()

    def _maps(self, images: Tensor) -> list[Tensor]:
        maps = self.network.maps(images.contiguous(memory_format=torch.channels_last))
        return [maps[i] for i in self._chosen]


def _relative(made: Tensor, target: Tensor) -> Tensor:
    return (made.float() - target.float()).square().mean() / target.float().square().mean().clamp(min=1e-6)


class ConvNextPerceptual(nn.Module):
    """Mean squared difference of the 1,000 logits of ConvNeXt-S, at 224 px (bytedance/1d-tokenizer, commit 942a96f)."""

    def __init__(self, network: ConvNextSmall) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)

    def forward(self, made: Tensor, target: Tensor) -> Tensor:
        """0 for equal pictures; see the module for what goes in."""
        with torch.no_grad():
            wanted = self._logits(target)
        return F.mse_loss(self._logits(made), wanted)

    def _logits(self, images: Tensor) -> Tensor:
        size = (convnext.INPUT_SIZE, convnext.INPUT_SIZE)
        shown = F.interpolate(images.float(), size, mode="bilinear", align_corners=False, antialias=True)
        return self.network(shown).float()


class LpipsPerceptual(nn.Module):
    """The mean LPIPS distance of a batch, at the pictures' own size."""

    def __init__(self, network: Lpips) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)

    def forward(self, made: Tensor, target: Tensor) -> Tensor:
        """0 for equal pictures; see the module for what goes in."""
        with torch.no_grad():
            wanted = self.network.maps(target)
        return self.network.distance(self.network.maps(made), wanted).mean()
