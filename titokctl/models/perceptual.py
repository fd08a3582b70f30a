"""Perceptual losses: how far apart two pictures are for a network that knows pictures.

Letters: B batch, S image size.
"""

import torch
from torch import Tensor, nn

from titokctl.models.efficientnet_lite0 import STAGES, EfficientNetLite0


class Lite0Perceptual(nn.Module):
    """Distance of the maps of EfficientNet-Lite0 after its stem and each of its stages, at the pictures' own size.

    Every map's squared difference is divided by the target's mean square, so that all depths count alike: 0 for equal
    pictures, about 1 where nothing of a map is right. It ranks a blur behind a shift by one pixel, as people do and
    squared error does not.

    Args:
        network: trained and frozen; works in the type of its weights.
    """

    def __init__(self, network: EfficientNetLite0) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        ends = torch.cumsum(torch.tensor([stage.repeats for stage in STAGES]), 0)
        self._chosen = (0, *ends.tolist())  # positions in the list of maps

    def forward(self, made: Tensor, target: Tensor) -> Tensor:
        """A scalar; `made` and `target` (B, 3, S, S) float32 in [0, 1], gradients only for `made`."""
        with torch.no_grad():
            wanted = self._maps(target)
        pairs = zip(self._maps(made), wanted, strict=True)
        return torch.stack([_relative(a, b) for a, b in pairs]).mean()

    def _maps(self, images: Tensor) -> list[Tensor]:
        maps = self.network.maps(images.contiguous(memory_format=torch.channels_last))
        return [maps[i] for i in self._chosen]


def _relative(made: Tensor, target: Tensor) -> Tensor:
    return (made.float() - target.float()).square().mean() / target.float().square().mean().clamp(min=1e-6)
