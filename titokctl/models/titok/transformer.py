"""The pre-norm transformer block that encoder and decoder are made of.

Letters: B batch, L sequence length, D width, H heads.
"""

import torch
from torch import nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Self-attention with one packed projection for queries, keys and values."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, L, D)
        packed = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # (B, L, 3, H, D/H)
        q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)  # 3 x (B, H, L, D/H)
        mixed = F.scaled_dot_product_attention(q, k, v)  # (B, H, L, D/H)
        return self.out(mixed.transpose(1, 2).flatten(2))  # (B, L, D)


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
        self.attention = Attention(width, num_heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = Mlp(width, mlp_ratio * width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, L, D)
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))
