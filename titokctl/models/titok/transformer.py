"""The pre-norm transformer block that encoder and decoder are made of.

Letters: B batch, L sequence length, D width.
"""

import torch
from torch import nn
from torch.nn import functional as F

from titokctl.models.attention import SelfAttention


class Mlp(nn.Module):
    """Two linear layers around an exact (erf) GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, L, D)
        return self.down(F.gelu(self.up(x)))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, num_heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = Mlp(width, mlp_ratio * width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, L, D)
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))
