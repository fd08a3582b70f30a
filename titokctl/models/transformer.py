"""Parts of the transformers: attention, the pre-norm block of TiTok, activation checkpointing of any block.

Letters: B batch, L sequence length, D width.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

LONGEST_SHORT = 64  # positions up to which a GPU attends in one kernel while training


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dropout: float = 0.0, is_causal: bool = False
) -> torch.Tensor:
    """Return softmax(q k^T / sqrt(C)) v for queries, keys and values (B, H, L, C): the same shape.

    On a CPU, where gradients are wanted, these are two products and a softmax in the type of q: for the 33 to 300
    positions of these models forward and backward take half the time of torch's plain form, which looks for rows
    without any visible position, and less than its fused form.

    Args:
        dropout: share of attention weights that are dropped.
        is_causal: hide from each position those behind it.
    """
    if q.device.type != "cpu" or not (q.requires_grad and torch.is_grad_enabled()):
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=is_causal)
    scores = (q * q.shape[-1] ** -0.5) @ k.mT  # (B, H, L, L)
    if is_causal:
        scores = scores.masked_fill(
            torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1), float("-inf")
        )
    with torch.autocast(q.device.type, enabled=False):
        weights = scores.softmax(-1)
    return F.dropout(weights, dropout) @ v


class SelfAttention(nn.Module):
    """Multi-head attention with one packed projection for queries, keys and values (in this order).

    Args:
        width: D, a multiple of `num_heads`.
        qkv_bias: whether the packed projection has a bias; the output projection always has one.
        dropout: share of attention weights dropped while training.

    Attributes:
        in_one_kernel: attend by `models.triton_attention` where gradients are wanted; only for what it takes.
    """

    def __init__(self, width: int, num_heads: int, qkv_bias: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.in_one_kernel = False
        self.num_heads = num_heads
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, L, D)
        packed, dropout = self.qkv(x), self.dropout if self.training else 0.0  # (B, L, 3D)
        if self.in_one_kernel and torch.is_grad_enabled():
            from titokctl.models.triton_attention import short_attention

            return self.out(short_attention(packed, self.num_heads, dropout))
        heads = packed.unflatten(-1, (3, self.num_heads, -1))  # (B, L, 3, H, D/H)
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)  # 3 x (B, H, L, D/H)
        mixed = attend(q, k, v, dropout)
        return self.out(mixed.transpose(1, 2).flatten(2))  # (B, L, D)


def run_block(block: nn.Module, x: torch.Tensor, recompute: bool, *more: Any) -> torch.Tensor:
    """Return block(x, *more), the same numbers either way, dropout included.

    `recompute` saves memory for a forward pass.
    """
    kept = not recompute or not torch.is_grad_enabled()
    result: torch.Tensor = block(x, *more) if kept else checkpoint(block, x, *more, use_reentrant=False)
    return result


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
