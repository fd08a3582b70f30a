"""Perceptual losses: how far apart two pictures are for a network that knows pictures.

Each is `loss(made, target) -> scalar` for images (B, 3, S, S) float32 in [0, 1], with gradients only for `made`; its
network is frozen and works in the type of its weights.

Letters: B batch, S image size.
"""

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from titokctl.models import convnext
from titokctl.models.efficientnet_lite import LITE0


class _Perceptual(nn.Module):
    """A frozen network, how it sees pictures, and how far apart two of them are for it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = network.eval().requires_grad_(False)

    def forward(self, made: Tensor, target: Tensor) -> Tensor:
        """0 for equal pictures; see the module for what goes in."""
        with torch.no_grad():
            wanted = self._seen(target)
        return self._distance(self._seen(made), wanted)

    def _seen(self, images: Tensor) -> Any:
        raise NotImplementedError

    def _distance(self, made: Any, target: Any) -> Tensor:
        raise NotImplementedError


class Lite0Perceptual(_Perceptual):
    """Distance of the maps of EfficientNet-Lite0 after its stem and each of its stages, at the pictures' own size.

    Every map's squared difference is divided by the target's mean square, so that all depths count alike: 0 for equal
    pictures, about 1 where nothing of a map is right. It ranks a blur behind a shift by one pixel, as people do and
    squared error does not.
    """

    def _seen(self, images: Tensor) -> list[Tensor]:
        maps = self.network.maps(images.contiguous(memory_format=torch.channels_last))
        return [maps[i] for i in (0, *accumulate(stage.repeats for stage in LITE0.stages))]

    def _distance(self, made: list[Tensor], target: list[Tensor]) -> Tensor:
        return torch.stack([_relative(a, b) for a, b in zip(made, target, strict=True)]).mean()


def _relative(made: Tensor, target: Tensor) -> Tensor:
    return (made.float() - target.float()).square().mean() / target.float().square().mean().clamp(min=1e-6)


class ConvNextPerceptual(_Perceptual):
    """Mean squared difference of the 1,000 logits of ConvNeXt-S, at 224 px (bytedance/1d-tokenizer, commit 942a96f)."""

    def _seen(self, images: Tensor) -> Tensor:
        size = (convnext.INPUT_SIZE, convnext.INPUT_SIZE)
        shown = F.interpolate(images.float(), size, mode="bilinear", align_corners=False, antialias=True)
        return self.network(shown).float()

    def _distance(self, made: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(made, target)


class LpipsPerceptual(_Perceptual):
    """The mean LPIPS distance of a batch, at the pictures' own size."""

    def _seen(self, images: Tensor) -> list[Tensor]:
        return self.network.maps(images)

    def _distance(self, made: list[Tensor], target: list[Tensor]) -> Tensor:
        return self.network.distance(made, target).mean()
