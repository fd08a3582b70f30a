"""The ViT decoder: K code vectors in, one vector for every image patch out, then a head.

Letters: B batch, N image patches (h x w), K latent tokens, D width, C token size, p patch size.
Source: the TiTok paper, section 3.2 (arXiv 2406.07550).
"""

import torch
from torch import nn

from titokctl.config.models import TokenizerConfig
from titokctl.models.recompute import run_block
from titokctl.models.titok.patches import from_overlapping_patches, from_patches
from titokctl.models.titok.transformer import Block


class Decoder(nn.Module):
    """Mask tokens and code vectors through one transformer; only the places of the mask tokens are kept."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        vit = config.decoder
        width = vit.width
        self.num_patches = (config.image_size // vit.patch_size) ** 2
        self.code_embed = nn.Linear(config.token_size, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.class_embedding = nn.Parameter(torch.zeros(1, width))
        self.positional_embedding = nn.Parameter(torch.zeros(self.num_patches + 1, width))
        self.latent_positional_embedding = nn.Parameter(torch.zeros(config.num_latent_tokens, width))
        self.recompute = False  # blocks again in the backward pass, to save memory
        self.norm_in = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width, vit.num_heads, vit.mlp_ratio) for _ in range(vit.num_layers))
        self.norm_out = nn.LayerNorm(width)
        self.head = ProxyHead(config) if config.proxy else PixelHead(width, vit.patch_size, config.overlapping_patches)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """(B, K, C) to what the head gives: pixels (B, 3, S, S), or logits (B, N, proxy codes)."""
        batch = vectors.shape[0]  # len() would fix the batch size of an exported graph
        codes = self.code_embed(vectors) + self.latent_positional_embedding  # (B, K, D)
        masks = self.mask_token.expand(batch, self.num_patches, -1)  # (B, N, D)
        x = torch.cat([self.class_embedding.expand(batch, 1, -1), masks], 1) + self.positional_embedding
        x = torch.cat([x, codes], 1)  # (B, 1 + N + K, D)
        x = self.norm_in(x)
        for block in self.blocks:
            x = run_block(block, x, self.recompute)
        x = self.norm_out(x[:, 1 : 1 + self.num_patches])  # (B, N, D)
        return self.head(x)


class PixelHead(nn.Module):
    """A patch of pixels from every vector, then a 3x3 convolution over the seams.

    Overlapping patches are twice as large and fade into each other.
    """

    def __init__(self, width: int, patch_size: int, overlapping: bool = False) -> None:
        super().__init__()
        self.patch_size, self.overlapping = patch_size, overlapping
        self.to_pixels = nn.Linear(width, 3 * patch_size**2 * (4 if overlapping else 1))
        self.smooth = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, N, D)
        joined = from_overlapping_patches if self.overlapping else from_patches
        pixels = joined(self.to_pixels(x), self.patch_size)  # (B, 3, h p, w p)
        return self.smooth(pixels)


class ProxyHead(nn.Module):
    """Logits over the proxy tokenizer's codes at every place of the grid."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        assert config.proxy is not None
        width = config.decoder.width
        self.hidden = nn.Linear(width, 2 * width)
        self.logits = nn.Linear(2 * width, config.proxy.codebook_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, N, D)
        return self.logits(torch.tanh(self.hidden(x)))  # (B, N, proxy codes)
