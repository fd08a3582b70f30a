"""The ViT encoder: an image and K learned latent tokens in, K latents out.

Letters: B batch, N image patches, K latent tokens, D width, C channels of a latent.
Source: the TiTok paper, section 3.2 (arXiv 2406.07550).
"""

import torch
from torch import nn

from titokctl.config.models import TokenizerConfig
from titokctl.models.recompute import run_block
from titokctl.models.titok.patches import to_patches
from titokctl.models.titok.transformer import Block


class Encoder(nn.Module):
    """Patches and latent tokens through one transformer; only the latent tokens are kept.

    Args:
        config: the tokenizer's.
        channels: C, what the quantizer wants of every latent token.
    """

    def __init__(self, config: TokenizerConfig, channels: int) -> None:
        super().__init__()
        self.config = config
        vit = config.encoder
        width, num_patches = vit.width, (config.image_size // vit.patch_size) ** 2
        self.patch_embed = nn.Linear(3 * vit.patch_size**2, width)
        self.class_embedding = nn.Parameter(torch.zeros(1, width))
        self.positional_embedding = nn.Parameter(torch.zeros(num_patches + 1, width))
        self.latent_positional_embedding = nn.Parameter(torch.zeros(config.num_latent_tokens, width))
        self.recompute = False  # blocks again in the backward pass, to save memory
        self.norm_in = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width, vit.num_heads, vit.mlp_ratio) for _ in range(vit.num_layers))
        self.norm_out = nn.LayerNorm(width)
        self.to_latents = nn.Linear(width, channels)

    def forward(self, images: torch.Tensor, latent_tokens: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) in [0, 1] and (K, D) to (B, K, C)."""
        batch = images.shape[0]  # len() would fix the batch size of an exported graph
        patches = self.patch_embed(to_patches(images, self.config.encoder.patch_size))  # (B, N, D)
        x = torch.cat([self.class_embedding.expand(batch, 1, -1), patches], 1) + self.positional_embedding
        latents = latent_tokens + self.latent_positional_embedding  # (K, D)
        x = torch.cat([x, latents.expand(batch, -1, -1)], 1)  # (B, 1 + N + K, D)
        x = self.norm_in(x)
        for block in self.blocks:
            x = run_block(block, x, self.recompute)
        x = self.norm_out(x[:, -len(latents) :])  # (B, K, D)
        if self.config.shuffled_bottleneck:
            x = shuffle(x)
        return self.to_latents(x)  # (B, K, C)


def shuffle(x: torch.Tensor) -> torch.Tensor:
    """(B, K, D) with its memory read as (B, D, K): every output token mixes values of all K.

    The released S-128, B-64 and L-32 were trained with this slip (a reshape where a transpose was meant), so their
    weights only work with it.
    """
    batch, count, width = x.shape
    # Contiguous, because a linear layer over strided rows rounds otherwise for one image than for several.
    return x.reshape(batch, width, count).transpose(1, 2).contiguous()
