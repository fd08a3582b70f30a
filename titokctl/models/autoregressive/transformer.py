"""The causal transformer of autoregressive generators, and the cache of its keys and values.

Source: "Randomized Autoregressive Visual Generation" (arXiv 2411.00776), with learned norms of queries and keys.
Letters: B batch, K latent tokens, D width, H heads, R rows of a cache, n positions that are computed at once.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from titokctl.config.models import AutoregressiveConfig
from titokctl.models.transformer import attend

MODULATIONS = 6  # of a block: shift, scale and gate of attention and of the perceptron


class KeyValues:
    """Keys and values of one block, (R, H, K, D/H) each. Their shape is fixed, whatever is known of them."""

    def __init__(self, num_rows: int, num_tokens: int) -> None:
        self._rows, self._tokens = num_rows, num_tokens
        self._kept: torch.Tensor | None = None

    def put(self, window: "Window", k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Store keys and values (r, H, n, D/H) of a window, and return those of its rows at all positions."""
        if self._kept is None:
            # Zeros, since attention multiplies what it may not see by 0.
            self._kept = k.new_zeros(2, self._rows, k.shape[1], self._tokens, k.shape[3])
        mine = self._kept[:, window.rows]
        mine[:, :, :, window.first : window.first + k.shape[2]] = torch.stack([k, v])
        return mine[0], mine[1]


@dataclass(frozen=True)
class Window:
    """The part of a sequence that is computed with a cache.

    Args:
        rows: the rows of the cache.
        first: the first position; all before it are in the cache.
        visible: (n, K) bool, the positions that each computed one attends to.
    """

    rows: slice
    first: int
    visible: torch.Tensor


class AutoregressiveBlock(nn.Module):
    """Causal attention and a two-layer perceptron, each normalised before and added to its input."""

    def __init__(self, config: AutoregressiveConfig) -> None:
        super().__init__()
        width = config.width
        self.attention_norm = nn.LayerNorm(width)
        self.attention = CausalAttention(config)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, config.mlp_width)
        self.mlp_out = nn.Linear(config.mlp_width, width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: torch.Tensor,
        modulation: torch.Tensor | None = None,
        window: Window | None = None,
        cache: KeyValues | None = None,
    ) -> torch.Tensor:
        """Return (B, n, D).

        Args:
            x: (B, n, D).
            modulation: (B, 6, 1, D), the class's change of norms and branches, 0 for none.
            window, cache: where x lies in its sequence, and what is before it; None for whole sequences.
        """
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = parts_of(modulation)
        mixed = self.attention(modulated(self.attention_norm(x), shift, scale), window, cache)
        x = x + gated(self.dropout(mixed), gate)
        hidden = self.dropout(F.gelu(self.mlp_in(modulated(self.mlp_norm(x), mlp_shift, mlp_scale))))  # (B, n, mlp)
        return x + gated(self.dropout(self.mlp_out(hidden)), mlp_gate)


class CausalAttention(nn.Module):
    """Self-attention in which no position sees a later one; queries and keys of each head are normalised."""

    def __init__(self, config: AutoregressiveConfig) -> None:
        super().__init__()
        self.num_heads, self.dropout = config.num_heads, config.attention_dropout
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.query_norm = nn.LayerNorm(config.width // config.num_heads)
        self.key_norm = nn.LayerNorm(config.width // config.num_heads)
        self.out = nn.Linear(config.width, config.width)

    def forward(self, x: torch.Tensor, window: Window | None, cache: KeyValues | None) -> torch.Tensor:
        packed = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # (B, n, 3, H, D/H)
        q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)  # 3 x (B, H, n, D/H)
        q, k = self.query_norm(q).to(v.dtype), self.key_norm(k).to(v.dtype)
        mixed = attended(q, k, v, window, cache, self.dropout if self.training else 0.0)
        return self.out(mixed.transpose(1, 2).flatten(2))  # (B, n, D)


def attended(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    window: Window | None,
    cache: KeyValues | None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Return the values (B, H, n, D/H) that queries (B, H, n, D/H) attend to, none of them later than the query."""
    if window is None or cache is None:
        return attend(q, k, v, dropout, is_causal=True)
    k, v = cache.put(window, k, v)  # (B, H, K, D/H)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=window.visible)


def modulated(x: torch.Tensor, shift: torch.Tensor | None, scale: torch.Tensor | None) -> torch.Tensor:
    """Return x (1 + scale) + shift, or x without them."""
    return x if shift is None or scale is None else x * (1 + scale) + shift


def gated(x: torch.Tensor, gate: torch.Tensor | None) -> torch.Tensor:
    """Return x (1 + gate), or x without it. The 1 lets every branch count from the first step on."""
    return x if gate is None else x * (1 + gate)


def parts_of(modulation: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    """Return shift, scale and gate of attention and of the perceptron, (B, 1, D) each, or six times None."""
    return (None,) * MODULATIONS if modulation is None else modulation.unbind(1)
