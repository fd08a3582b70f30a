"""Self-attention as both generator architectures use it.

Letters: B batch, L sequence (label and K ids), D width, H heads.
"""

import torch
from torch import nn
from torch.nn import functional as F


class SelfAttention(nn.Module):
    """Multi-head attention with one packed projection for queries, keys and values (in this order).

    Args:
        width: D, a multiple of `num_heads`.
        qkv_bias: whether the packed projection has a bias; the output projection always has one.
        dropout: share of attention weights dropped while training.
    """

    def __init__(self, width: int, num_heads: int, qkv_bias: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, L, D) -> (B, L, D)."""
        batch, length, width = x.shape
        heads = self.qkv(x).view(batch, length, 3, self.num_heads, width // self.num_heads)  # (B, L, 3, H, D/H)
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # each (B, H, L, D/H)
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))  # (B, L, D)
