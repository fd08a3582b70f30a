"""Finite scalar quantization for titokctl: every channel of a latent is rounded to one of a few levels.

Letters: B batch, K latent tokens, C channels, L levels of a channel, V codes (the product of all L).
Source: "Finite Scalar Quantization: VQ-VAE Made Simple" (arXiv 2309.15505), section 3 and its table of levels.
"""

import torch
from torch import nn

from titokctl.config.models import TokenizerConfig
from titokctl.errors import UserError
from titokctl.models.titok.quantizers import QuantizerOutput

LEVELS = {240: (8, 6, 5), 1000: (8, 5, 5, 5), 4375: (7, 5, 5, 5, 5), 15360: (8, 8, 8, 6, 5), 64000: (8, 8, 8, 5, 5, 5)}
_MARGIN = 1e-3  # of a range, so that no latent is rounded beyond the outermost level


class FiniteScalarQuantizer(nn.Module):
    """Nothing to learn and no losses of its own; `codebook_size` picks the levels, `token_size` counts them."""

    levels: torch.Tensor  # (C,) int64, a buffer: it is kept with the weights and counts in their hash

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        levels = LEVELS.get(config.codebook_size or 0)
        if levels is None or len(levels) != config.token_size:
            known = ", ".join(f"{size} x {len(found)}" for size, found in LEVELS.items())
            raise UserError(
                f"fsq has no levels for codebook_size {config.codebook_size} and token_size {config.token_size}",
                f"codebook_size x token_size may be {known}",
            )
        self.channels = config.token_size
        self.register_buffer("levels", torch.tensor(levels))

    def forward(self, latents: torch.Tensor) -> QuantizerOutput:
        """Latents (B, K, C) to vectors in [-1, 1] and ids; gradients pass the rounding straight through."""
        bounded = self._bounded(latents)  # (B, K, C)
        steps = bounded.round()
        vectors = (steps.detach() + (bounded - bounded.detach())) / (self.levels // 2)
        zero = vectors.new_zeros(())
        return QuantizerOutput(vectors, self._ids(steps), zero, zero, zero)

    def nearest(self, latents: torch.Tensor) -> torch.Tensor:
        """(B, K, C) to ids (B, K) int64."""
        return self._ids(self._bounded(latents).round())

    def vectors_of(self, ids: torch.Tensor) -> torch.Tensor:
        """Ids (B, K) to the float32 vectors (B, K, C) that the decoder gets for them."""
        steps = ids.unsqueeze(-1) // self._place_values() % self.levels - self.levels // 2  # (B, K, C)
        return steps.float() / (self.levels // 2)

    def _bounded(self, latents: torch.Tensor) -> torch.Tensor:
        """Squashed so that rounding gives L integers: -(L // 2) to (L - 1) // 2. Zero stays zero."""
        half = (self.levels - 1) * (0.5 - _MARGIN)
        offset = (1 - self.levels % 2) * 0.5  # an even number of levels lies half a step off the centre
        return torch.tanh(latents.float() + torch.atanh(offset / half)) * half - offset

    def _ids(self, steps: torch.Tensor) -> torch.Tensor:
        return ((steps.long() + self.levels // 2) * self._place_values()).sum(-1)

    def _place_values(self) -> torch.Tensor:
        """(C,): 1, L1, L1 L2, ... as of the digits of a number."""
        return self.levels.cumprod(0) // self.levels
