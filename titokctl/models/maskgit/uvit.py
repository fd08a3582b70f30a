"""The "uvit" generator body: a pre-norm transformer with long skips (U-ViT, arXiv 2209.12152).

Letters: B batch, K latent tokens, L = K + 1 positions (the label first), D width.
"""

import torch
from torch import nn
from torch.nn import functional as F

from titokctl.config.models import GeneratorConfig
from titokctl.models.transformer import SelfAttention, run_block


class UvitBody(nn.Module):
    """Token sequences to hidden states. The config's dropout is not used: this architecture has none."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.recompute = False  # blocks again in the backward pass, to save memory
        self.stream_dtype: torch.dtype | None = None  # of the residual stream while training; None for float32
        half = config.num_layers // 2
        self.token_embedding = nn.Embedding(config.vocabulary_size, config.width)
        self.position_embedding = nn.Embedding(config.num_latent_tokens + 1, config.width)
        self.in_blocks = nn.ModuleList(UvitBlock(config) for _ in range(half))
        self.mid_block = UvitBlock(config)
        self.joins = nn.ModuleList(nn.Linear(2 * config.width, config.width) for _ in range(half))
        self.out_blocks = nn.ModuleList(UvitBlock(config) for _ in range(half))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, L) int64 -> (B, L, D)."""
        x = self.token_embedding(tokens) + self.position_embedding.weight  # (B, L, D)
        if self.training and self.stream_dtype is not None:
            x = x.to(self.stream_dtype)
        skips = []
        for block in self.in_blocks:
            x = run_block(block, x, self.recompute)
            skips.append(x)
        x = run_block(self.mid_block, x, self.recompute)
        for join, block in zip(self.joins, self.out_blocks, strict=True):
            x = join(torch.cat([x, skips.pop()], dim=-1))  # (B, L, 2D) -> (B, L, D)
            x = run_block(block, x, self.recompute)
        return self.norm(x)


class UvitBlock(nn.Module):
    """Attention without qkv bias and a two-layer perceptron, each normalised before and added to its input."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        width = config.width
        self.attention_norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, config.num_heads, qkv_bias=False)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, config.mlp_width)
        self.mlp_out = nn.Linear(config.mlp_width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, L, D) -> (B, L, D)."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x))))
