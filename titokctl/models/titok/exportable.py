"""The two directions of a tokenizer as modules for torch.export and torch.onnx.

`TiTok.tokenize` and `detokenize` look at the values that they get and raise ValueError; a graph can't do that. These
modules compute the same without looking, for any batch size. Letters: B batch, K latent tokens, S image size.
"""

import torch
from torch import nn

from titokctl.models.titok.tokenizer import TiTok


class ImagesToIds(nn.Module):
    """`TiTok.tokenize`: images (B, 3, S, S) float32 in [0, 1] to ids (B, K) int64, or a Gaussian's means (B, K, C)."""

    def __init__(self, tokenizer: TiTok) -> None:
        super().__init__()
        self.tokenizer = tokenizer.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the ids of the images."""
        latents = self.tokenizer.encode(images).float()
        if self.tokenizer.config.is_discrete:
            return self.tokenizer.quantizer.nearest(latents)
        return latents[..., : self.tokenizer.config.token_size]


class IdsToImages(nn.Module):
    """`TiTok.detokenize`: ids (B, K) int64, or latents (B, K, C) float32, to images (B, 3, S, S) float32 in [0, 1]."""

    def __init__(self, tokenizer: TiTok) -> None:
        super().__init__()
        self.tokenizer = tokenizer.eval()

    def forward(self, ids_or_latents: torch.Tensor) -> torch.Tensor:
        """Return the images of the ids."""
        vectors = ids_or_latents
        if self.tokenizer.config.is_discrete:
            vectors = self.tokenizer.quantizer.vectors_of(ids_or_latents)
        return self.tokenizer.decode(vectors).float().clamp(0, 1)
