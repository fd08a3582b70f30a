"""From TiTok's logits over proxy codes to pixels.

Letters: B batch, N places of the grid (h x w), C token size of the proxy tokenizer.
"""

import torch
from torch import nn

from titokctl.config.models import VqganConfig
from titokctl.models.vqgan.vqgan import VqganDecoder


class ProxyPixels(nn.Module):
    """MaskGIT-VQGAN's codebook and decoder, fine-tuned in stage 2 on mixtures of code vectors."""

    def __init__(self, config: VqganConfig) -> None:
        super().__init__()
        self.codebook = nn.Parameter(torch.zeros(config.codebook_size, config.token_size))
        self.decoder = VqganDecoder(config)

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits (B, N, proxy codes) of a square grid to pixels (B, 3, H, W), not clamped."""
        grid = round(logits.shape[1] ** 0.5)
        mixture = torch.softmax(logits.float(), -1).to(self.codebook.dtype) @ self.codebook  # (B, N, C)
        # Contiguous: GroupNorm over channels-last memory rounds by how threads share a batch.
        return self.decoder(mixture.mT.unflatten(2, (grid, grid)).contiguous())
