"""Attention over short sequences while training on a GPU, as one Triton kernel for each direction.

A program has all positions of one head of one image at once, so weights never reach memory: the forward pass reads
queries, keys and values where the projection left them and writes the result, the backward pass reads them again and
writes their gradients. Neither uses atomics: the same input gives the same bits. Importing this module needs triton.

Letters: B images, L positions, H heads, C channels of a head.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch.nn import functional as F

from titokctl.models.device import current_device

_FEWEST = 16  # rows and columns of the smallest product of matrices
_LARGEST_ERROR = 0.02  # of 16-bit results, relative to torch's in float32


@triton.jit
def _places(length, heads, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Return where the queries of this program's head are in (B, L, 3, H, C) and its result in (B, L, H, C), and which
    of both exist."""
    image, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    row, channel = tl.arange(0, ROWS), tl.arange(0, CHANNELS)
    width = heads * channels
    place = image.to(tl.int64) * length + row
    within = head * channels + channel
    inside = (row < length)[:, None] & (channel < channels)[None, :]
    return place[:, None] * (3 * width) + within[None, :], place[:, None] * width + within[None, :], inside


@triton.jit
def _weights(q, k, seed, length, scale, dropout, DROPS: tl.constexpr, ROWS: tl.constexpr):
    """Return the attention weights (L, L), and the factor of each: 0 where it is dropped, else 1 / (1 - dropout)."""
    row = tl.arange(0, ROWS)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    scores = tl.where((row < length)[None, :], scores, float("-inf"))
    weights = tl.exp(scores - tl.max(scores, 1)[:, None])
    weights = weights / tl.sum(weights, 1)[:, None]
    kept = tl.full((ROWS, ROWS), 1.0, tl.float32)
    if DROPS:
        drawn = tl.rand(tl.load(seed) + tl.program_id(0), row[:, None] * ROWS + row[None, :])
        kept = tl.where(drawn >= dropout, 1.0 / (1.0 - dropout), 0.0)
    return weights, kept


@triton.jit
def _forward(
    packed, seed, out, length, heads, channels, scale, dropout,
    DROPS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    at, place, inside = _places(length, heads, channels, ROWS, CHANNELS)
    q = tl.load(packed + at, mask=inside, other=0.0)
    k = tl.load(packed + at + heads * channels, mask=inside, other=0.0)
    v = tl.load(packed + at + 2 * heads * channels, mask=inside, other=0.0)
    weights, kept = _weights(q, k, seed, length, scale, dropout, DROPS, ROWS)
    mixed = tl.dot((weights * kept).to(v.dtype), v, input_precision="ieee")
    tl.store(out + place, mixed.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _backward(
    packed, seed, gradient, out, length, heads, channels, scale, dropout,
    DROPS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    at, place, inside = _places(length, heads, channels, ROWS, CHANNELS)
    width = heads * channels
    q = tl.load(packed + at, mask=inside, other=0.0)
    k = tl.load(packed + at + width, mask=inside, other=0.0)
    v = tl.load(packed + at + 2 * width, mask=inside, other=0.0)
    back = tl.load(gradient + place, mask=inside, other=0.0)
    weights, kept = _weights(q, k, seed, length, scale, dropout, DROPS, ROWS)
    of_v = tl.dot(tl.trans((weights * kept).to(v.dtype)), back, input_precision="ieee")
    tl.store(out + at + 2 * width, of_v.to(out.dtype.element_ty), mask=inside)
    of_weights = tl.dot(back, tl.trans(v), input_precision="ieee") * kept
    of_scores = weights * (of_weights - tl.sum(of_weights * weights, 1)[:, None]) * scale
    low = of_scores.to(q.dtype)
    tl.store(out + at, tl.dot(low, k, input_precision="ieee").to(out.dtype.element_ty), mask=inside)
    of_k = tl.dot(tl.trans(low), q, input_precision="ieee")
    tl.store(out + at + width, of_k.to(out.dtype.element_ty), mask=inside)


@torch.library.custom_op("titokctl::short_attention", mutates_args=())
def _attention(packed: torch.Tensor, seed: torch.Tensor, heads: int, dropout: float) -> torch.Tensor:
    batch, length, width = packed.shape
    out = torch.empty((batch, length, width // 3), dtype=packed.dtype, device=packed.device)
    with current_device(packed.device):
        _forward[(batch * heads,)](
            packed, seed, out, *_sizes(packed, heads), dropout, **_blocks(packed, heads, dropout)
        )
    return out


@torch.library.custom_op("titokctl::short_attention_backward", mutates_args=())
def _attention_backward(
    gradient: torch.Tensor, packed: torch.Tensor, seed: torch.Tensor, heads: int, dropout: float
) -> torch.Tensor:
    out = torch.empty_like(packed)
    with current_device(packed.device):
        _backward[(len(packed) * heads,)](
            packed, seed, gradient.contiguous(), out, *_sizes(packed, heads), dropout,
            **_blocks(packed, heads, dropout),
        )  # fmt: skip
    return out


@_attention.register_fake
def _(packed: torch.Tensor, seed: torch.Tensor, heads: int, dropout: float) -> torch.Tensor:
    return packed.new_empty((*packed.shape[:2], packed.shape[2] // 3))


@_attention_backward.register_fake
def _(gradient: torch.Tensor, packed: torch.Tensor, seed: torch.Tensor, heads: int, dropout: float) -> torch.Tensor:
    return torch.empty_like(packed)


def _keep(ctx, inputs, output) -> None:
    packed, seed, ctx.heads, ctx.dropout = inputs
    ctx.save_for_backward(packed, seed)


def _differentiate(ctx, gradient):
    return _attention_backward(gradient, *ctx.saved_tensors, ctx.heads, ctx.dropout), None, None, None


_attention.register_autograd(_differentiate, setup_context=_keep)


def short_attention(packed: torch.Tensor, heads: int, dropout: float) -> torch.Tensor:
    """Return softmax(q k^T / sqrt(C)) v, (B, L, H C), of the type of `packed`.

    Args:
        packed: queries, keys and values (B, L, 3 H C), contiguous, on a GPU; L at most `LONGEST_SHORT`.
        dropout: share of attention weights that are dropped; which ones, torch's generator decides.
    """
    if dropout:
        seed = torch.randint(1 << 40, (), device=packed.device)
    else:
        seed = torch.empty((), dtype=torch.int64, device=packed.device)
    return _attention(packed.contiguous(), seed, heads, dropout)


@cache
def problem(positions: int, heads: int, channels: int, dtype: torch.dtype, dropout: float) -> str:
    """Return the reason why `short_attention` can't be used for these sizes on this machine's GPU, or "" if it can.

    Both passes are run once, and compared with torch's.
    """
    shape = (2, positions, 3 * heads * channels)
    packed = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to("cuda", dtype).requires_grad_()
    back = torch.randn(2, positions, heads * channels, device="cuda", dtype=dtype)
    try:
        (dropped,) = torch.autograd.grad(short_attention(packed, heads, dropout), packed, back)
        found, wanted = short_attention(packed, heads, 0.0), _plain(packed.float(), heads)
        gradients = (torch.autograd.grad(out, packed, back.to(out.dtype))[0] for out in (found, wanted))
        errors = [_relative(found, wanted), _relative(*gradients)]
    except Exception as error:  # a compiler or a driver: anything may be missing
        return f"{type(error).__name__}: {error}".splitlines()[0]
    if not bool(dropped.isfinite().all()):
        return "its gradients are not finite"
    return "" if max(errors) < _LARGEST_ERROR else f"it is wrong by {max(errors):.2g}"


def _relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.detach().float() - wanted.detach().float()).norm() / wanted.detach().float().norm())


def _plain(packed: torch.Tensor, heads: int) -> torch.Tensor:
    q, k, v = packed.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _sizes(packed: torch.Tensor, heads: int) -> tuple[int, int, int, float]:
    channels = packed.shape[2] // 3 // heads
    return packed.shape[1], heads, channels, channels**-0.5


def _blocks(packed: torch.Tensor, heads: int, dropout: float) -> dict[str, int | bool]:
    rows = max(_FEWEST, triton.next_power_of_2(packed.shape[1]))
    channels = max(_FEWEST, triton.next_power_of_2(packed.shape[2] // 3 // heads))
    return {"DROPS": dropout > 0, "ROWS": rows, "CHANNELS": channels, "num_warps": 4}
