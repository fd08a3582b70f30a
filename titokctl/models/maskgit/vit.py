"""The "vit" generator body: BERT (arXiv 1810.04805), post-norm, as MaskGIT uses it.

Letters: B batch, K latent tokens, L = K + 1 positions (the label first), D width.
"""

import torch
from torch import nn
from torch.nn import functional as F

from titokctl.config.models import GeneratorConfig
from titokctl.models.transformer import SelfAttention, run_block

_EPS = 1e-12


class VitBody(nn.Module):
    """Token sequences to hidden states.

    `type_embedding` keeps both rows of BERT's table of token types, of which only row 0 is ever used, so that released
    weights survive a round trip.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.recompute = False  # blocks again in the backward pass, to save memory
        self.stream_dtype: torch.dtype | None = None  # of the residual stream while training; None for float32
        width = config.width
        self.token_embedding = nn.Embedding(config.vocabulary_size, width)
        self.position_embedding = nn.Embedding(config.num_latent_tokens + 1, width)
        self.type_embedding = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width, eps=_EPS)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(VitLayer(config) for _ in range(config.num_layers))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, L) int64 -> (B, L, D)."""
        x = self.token_embedding(tokens)  # (B, L, D)
        x = x + self.position_embedding.weight + self.type_embedding.weight[0]
        x = self.dropout(self.norm(x))
        if self.training and self.stream_dtype is not None:
            x = x.to(self.stream_dtype)
        for layer in self.layers:
            x = run_block(layer, x, self.recompute)
        return x


class VitLayer(nn.Module):
    """Attention and a two-layer perceptron, each added to its input and normalised after."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        width = config.width
        self.attention = SelfAttention(width, config.num_heads, dropout=config.attention_dropout)
        self.attention_norm = nn.LayerNorm(width, eps=_EPS)
        self.mlp_in = nn.Linear(width, config.mlp_width)
        self.mlp_out = nn.Linear(config.mlp_width, width)
        self.mlp_norm = nn.LayerNorm(width, eps=_EPS)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, L, D) -> (B, L, D)."""
        x = self.attention_norm(x + self.dropout(self.attention(x))).to(x.dtype)  # autocast normalises in float32
        hidden = F.gelu(self.mlp_in(x))  # (B, L, mlp_width)
        return self.mlp_norm(x + self.dropout(self.mlp_out(hidden))).to(x.dtype)
