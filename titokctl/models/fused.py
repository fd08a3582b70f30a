"""Transformer blocks and norms for inference on a GPU: the same functions, with less traffic through memory.

Between two matrix products, torch adds to the residual stream, normalises and converts in three kernels, and where an
image's class or time changes a norm in more; here it is one (`models.triton_kernels`). Sums and norms are float32.
Where triton is not installed, torch's own kernels do the same work, more slowly and with other last bits.

Letters: B batch, L sequence length, D width, H heads.
"""

from collections.abc import Iterable
from functools import cache
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import nn
from torch.nn import functional as F

from titokctl.models.autoregressive.transformer import (
    MODULATIONS,
    AutoregressiveBlock,
    CausalAttention,
    KeyValues,
    Window,
    attended,
    parts_of,
)
from titokctl.models.flow.transformer import FlowBlock
from titokctl.models.transformer import Block, SelfAttention

_LARGEST_ERROR = 1e-3


@cache
def triton_problem() -> str:
    """Return the reason why triton kernels can't run on this machine's GPU, or "" if they can.

    They are compiled on first use, which takes triton, a C compiler and Python's header files, and their results are
    compared with torch's once in each process.
    """
    if not torch.cuda.is_available():
        return "no CUDA device"
    try:
        from titokctl.models.triton_kernels import largest_error

        wrong_by = largest_error("cuda")
    except Exception as error:  # an import, a compiler or a driver: anything may be missing
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return "" if wrong_by < _LARGEST_ERROR else f"the compiled kernels are wrong by {wrong_by:.2g}"


def uses_triton(device: torch.device | str) -> bool:
    """Return True if the modules of this file use triton on `device`."""
    return torch.device(device).type == "cuda" and not triton_problem()


class Modulation(NamedTuple):
    """Changes that depend on the image, (B, 1, D) each: a branch times (base + gate), a norm times (1 + scale) + shift.

    None leaves a part as it is; shift and scale come together. All are parts of one tensor.
    """

    shift: torch.Tensor | None = None
    scale: torch.Tensor | None = None
    gate: torch.Tensor | None = None
    base: float = 0.0

    def gated(self, delta: torch.Tensor) -> torch.Tensor:
        """Return the branch (B, L, D) after its gate."""
        return delta if self.gate is None else delta * (self.base + self.gate)


_NO_CHANGE = Modulation()


class AddNorm(nn.Module):
    """A layer norm of the sum of the residual stream and what a layer adds to it.

    Args:
        dtype: of the norm that the next layer gets.
        keep: "sum" where the residual stream is the sum (pre-norm), "norm" where it is the norm (post-norm).
    """

    def __init__(self, norm: nn.LayerNorm, dtype: torch.dtype, keep: Literal["sum", "norm"]) -> None:
        super().__init__()
        self.norm, self.dtype, self.keep = norm, dtype, keep

    def forward(
        self, x: torch.Tensor, delta: torch.Tensor | None, modulation: Modulation = _NO_CHANGE
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the residual stream and the norm, (B, L, D) each."""
        if uses_triton(x.device):
            from titokctl.models.triton_kernels import add_layer_norm

            delta = None if delta is None else delta.contiguous()
            return add_layer_norm(x.contiguous(), delta, self.norm, self.dtype, self.keep, modulation)
        total = x.float() if delta is None else x.float() + modulation.gated(delta)
        normed = F.layer_norm(total, total.shape[-1:], self.norm.weight, self.norm.bias, self.norm.eps)
        stream = (total if self.keep == "sum" else normed).to(x.dtype)
        if modulation.shift is not None and modulation.scale is not None:
            normed = normed * (1 + modulation.scale) + modulation.shift
        return stream, normed.to(self.dtype)


class PreNormBlocks(nn.Module):
    """A run of pre-norm blocks.

    Args:
        blocks: of a tokenizer's transformer, or of a U-ViT.
        dtype: of products and attention.
        last: only so many positions, the last ones, are wanted; the last block computes no other ones. None for all.
    """

    def __init__(self, blocks: Iterable[nn.Module], dtype: torch.dtype, last: int | None = None) -> None:
        super().__init__()
        self.layers, self.last = nn.ModuleList(_Layers(block, dtype, "sum") for block in blocks), last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, L, D) to (B, L, D) of the same type, or to (B, last, D)."""
        delta = None
        with torch.autocast(x.device.type, enabled=False):
            for number, layer in enumerate(cast(Iterable[_Layers], self.layers), 1):
                x, normed = layer.attention_norm(x, delta)
                kept = self.last if number == len(self.layers) else None
                delta = layer.attention(normed, kept)
                x, normed = layer.mlp_norm(x if kept is None else x[:, -kept:], delta)
                delta = layer.mlp(normed)
            return x if delta is None else x + delta


class PostNormBlocks(nn.Module):
    """The layers of the "vit" body."""

    def __init__(self, layers: Iterable[nn.Module], dtype: torch.dtype) -> None:
        super().__init__()
        self.layers, self.dtype = nn.ModuleList(_Layers(layer, dtype, "norm") for layer in layers), dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, L, D) to (B, L, D) of the same type."""
        normed = x.to(self.dtype)
        with torch.autocast(x.device.type, enabled=False):
            for layer in cast(Iterable[_Layers], self.layers):
                x, normed = layer.attention_norm(x, layer.attention(normed))
                x, normed = layer.mlp_norm(x, layer.mlp(normed))
        return x


class CausalBlock(nn.Module):
    """A block of an autoregressive generator; arguments of `forward` as in `AutoregressiveBlock`."""

    def __init__(self, block: AutoregressiveBlock, dtype: torch.dtype) -> None:
        super().__init__()
        self.attention, self.mlp = _CausalAttention(block.attention, dtype), _Mlp(block.mlp_in, block.mlp_out, dtype)
        self.attention_norm = AddNorm(block.attention_norm, dtype, "sum")
        self.mlp_norm = AddNorm(block.mlp_norm, dtype, "sum")

    def forward(
        self,
        x: torch.Tensor,
        modulation: torch.Tensor | None = None,
        window: Window | None = None,
        cache: KeyValues | None = None,
    ) -> torch.Tensor:
        """Return (B, n, D) of the type of x."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = parts_of(modulation)
        with torch.autocast(x.device.type, enabled=False):
            x, normed = self.attention_norm(x, None, Modulation(shift, scale))
            mixed = self.attention(normed, window, cache)
            x, normed = self.mlp_norm(x, mixed, Modulation(mlp_shift, mlp_scale, gate, 1.0))
            return x + Modulation(gate=mlp_gate, base=1.0).gated(self.mlp(normed))


class ConditionedBlock(nn.Module):
    """A block of a flow; arguments of `forward` as in `FlowBlock`."""

    def __init__(self, block: FlowBlock, dtype: torch.dtype) -> None:
        super().__init__()
        self.attention, self.mlp = _Attention(block.attention, dtype), _Mlp(block.mlp.up, block.mlp.down, dtype)
        plain = nn.LayerNorm(block.attention.out.out_features, elementwise_affine=False)
        self.attention_norm, self.mlp_norm = AddNorm(plain, dtype, "sum"), AddNorm(plain, dtype, "sum")
        self.modulation = LowLinear(block.modulation, torch.float32)

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """(B, K, D) and (B, D) -> (B, K, D) of the type of x."""
        with torch.autocast(x.device.type, enabled=False):
            parts = self.modulation(condition)[:, None].chunk(MODULATIONS, dim=-1)  # (B, 1, D) each
            shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = parts
            x, normed = self.attention_norm(x, None, Modulation(shift, scale))
            x, normed = self.mlp_norm(x, self.attention(normed), Modulation(mlp_shift, mlp_scale, gate))
            return x + Modulation(gate=mlp_gate).gated(self.mlp(normed))


class _Layers(nn.Module):
    """The parts of a block, ready for inference."""

    def __init__(self, block: Any, dtype: torch.dtype, keep: Literal["sum", "norm"]) -> None:
        super().__init__()
        up, down = (block.mlp.up, block.mlp.down) if isinstance(block, Block) else (block.mlp_in, block.mlp_out)
        self.attention, self.mlp = _Attention(block.attention, dtype), _Mlp(up, down, dtype)
        self.attention_norm = AddNorm(block.attention_norm, dtype, keep)
        self.mlp_norm = AddNorm(block.mlp_norm, dtype, keep)


class _Attention(nn.Module):
    def __init__(self, attention: SelfAttention, dtype: torch.dtype) -> None:
        super().__init__()
        self.num_heads, self.dtype = attention.num_heads, dtype
        self.qkv, self.out = LowLinear(attention.qkv, dtype), LowLinear(attention.out, dtype)

    def forward(self, x: torch.Tensor, last: int | None = None) -> torch.Tensor:
        """(B, L, D) to (B, L, D), or to the values of the `last` positions, (B, last, D)."""
        if last is None:
            q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            width = x.shape[-1]
            heads = self.qkv.rows(x[:, -last:], slice(0, width)).unflatten(-1, (1, self.num_heads, -1))
            q = heads.permute(2, 0, 3, 1, 4)[0]
            k, v = self.qkv.rows(x, slice(width, None)).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)  # (B, H, L, D/H)
        return self.out(mixed.transpose(1, 2).flatten(2))


class _CausalAttention(nn.Module):
    def __init__(self, attention: CausalAttention, dtype: torch.dtype) -> None:
        super().__init__()
        self.num_heads, self.query_norm, self.key_norm = attention.num_heads, attention.query_norm, attention.key_norm
        self.qkv, self.out = LowLinear(attention.qkv, dtype), LowLinear(attention.out, dtype)

    def forward(self, x: torch.Tensor, window: Window | None, cache: KeyValues | None) -> torch.Tensor:
        """(B, n, D) to (B, n, D)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.query_norm(q.float()).to(v.dtype), self.key_norm(k.float()).to(v.dtype)
        return self.out(attended(q, k, v, window, cache).transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    def __init__(self, up: nn.Linear, down: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.up, self.down = LowLinear(up, dtype), LowLinear(down, dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.gelu(self.up(x)))


class LowLinear(nn.Module):
    """A frozen linear layer in `dtype`, whatever type its input has."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach().to(dtype), requires_grad=False)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().to(dtype), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias)

    def rows(self, x: torch.Tensor, rows: slice) -> torch.Tensor:
        """Return some of the outputs."""
        return F.linear(x, self.weight[rows], None if self.bias is None else self.bias[rows])
