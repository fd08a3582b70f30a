"""Reconstruction loss: differences of pixels, and of features of perceptual networks."""

from collections.abc import Callable, Mapping

import torch
from torch.nn import functional as F

from titokctl.config.tokenizer_recipe import PixelLossConfig
from titokctl.models.precision import Precision, low_dtype, precision

Perceptual = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class PixelLoss:
    """The part of the loss that looks at pictures.

    Args:
        config: weights, and when the networks join.
        networks: (made, target) -> scalar, both (B, 3, S, S) in [0, 1], for every name in `config.perceptual`; their
            weights are of the type of `config.precision`.
    """

    def __init__(self, config: PixelLossConfig, networks: Mapping[str, Perceptual]) -> None:
        self.config, self.networks = config, networks
        # Networks with 16-bit weights need no autocast: they compute in the type of their weights.
        self._precision: Precision = "tf32" if low_dtype(config.precision) else config.precision

    def __call__(
        self, made: torch.Tensor, images: torch.Tensor, step: int
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of made (B, 3, S, S) float32 against images, a scalar, and its unweighted parts, detached, by name.

        Among these is always "mse", the mean squared error.
        """
        mse = F.mse_loss(made, images)
        pixels = mse if self.config.reconstruction == "l2" else F.l1_loss(made, images)
        loss, parts = self.config.reconstruction_weight * pixels, {"mse": mse.detach()}
        if step >= self.config.perceptual_start:
            for name, weight in self.config.perceptual.items():
                with precision(self._precision, made.device):
                    seen = self.networks[name](made, images)
                loss, parts[name] = loss + weight * seen, seen.detach()
        return loss, parts
