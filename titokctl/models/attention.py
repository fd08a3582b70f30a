"""Self-attention as tokenizers and generators use it.

Letters: B batch, L sequence length, D width, H heads.
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

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, L, D)
        packed = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # (B, L, 3, H, D/H)
        q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)  # 3 x (B, H, L, D/H)
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return self.out(mixed.transpose(1, 2).flatten(2))  # (B, L, D)
