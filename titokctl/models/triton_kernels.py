"""Triton kernels of `models.fused`: one pass over memory where torch takes three or more.

Importing this module needs triton, which comes with torch's CUDA builds. No kernel uses atomics, and no sum depends on
the number of images, so equal rows give equal bits in any batch.

Letters: R rows, D width, B images, P places of a picture (H x W), C channels.
"""

from typing import Literal

import torch
import triton
import triton.language as tl
from torch import nn
from torch.nn import functional as F

from titokctl.models.device import current_device

Kept = Literal["sum", "norm"]
Changes = tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None, float]

_CHUNK_PLACES = 1024  # places that one program sums; it decides about the order of sums, and so about the last bits
_TILE = 4096  # numbers that a program holds at once


@triton.jit
def _add_layer_norm(
    x, delta, gate, weight, bias, scale, shift, total, normed, low, width, positions, stride, base, eps,
    HAS_DELTA: tl.constexpr, HAS_GATE: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_SHIFT: tl.constexpr,
    KEEPS_TOTAL: tl.constexpr, KEEPS_NORMED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * width
    image = (tl.program_id(0) // positions).to(tl.int64) * stride
    at = tl.arange(0, BLOCK)
    inside = at < width
    value = tl.load(x + row + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_DELTA:
        added = tl.load(delta + row + at, mask=inside, other=0.0).to(tl.float32)
        if HAS_GATE:
            added *= base + tl.load(gate + image + at, mask=inside, other=0.0).to(tl.float32)
        value += added
    if KEEPS_TOTAL:
        tl.store(total + row + at, value.to(total.dtype.element_ty), mask=inside)
    mean = tl.sum(value, 0) / width
    centred = tl.where(inside, value - mean, 0.0)
    out = centred * (1.0 / tl.sqrt(tl.sum(centred * centred, 0) / width + eps))
    if HAS_WEIGHT:
        out = out * tl.load(weight + at, mask=inside, other=0.0) + tl.load(bias + at, mask=inside, other=0.0)
    if HAS_SHIFT:
        out *= 1.0 + tl.load(scale + image + at, mask=inside, other=0.0).to(tl.float32)
        out += tl.load(shift + image + at, mask=inside, other=0.0).to(tl.float32)
    if KEEPS_NORMED:
        tl.store(normed + row + at, out.to(normed.dtype.element_ty), mask=inside)
    tl.store(low + row + at, out.to(low.dtype.element_ty), mask=inside)


@triton.jit
def _channel_sums(x, sums, places, channels, CHUNK: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    image, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    channel = tl.arange(0, BLOCK)
    inside = channel < channels
    first = tl.zeros((BLOCK,), tl.float32)
    second = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, CHUNK, ROWS):
        place = chunk * CHUNK + start + tl.arange(0, ROWS)
        at = (image * places + place[:, None]) * channels + channel[None, :]
        value = tl.load(x + at, mask=(place[:, None] < places) & inside[None, :], other=0.0).to(tl.float32)
        first += tl.sum(value, 0)
        second += tl.sum(value * value, 0)
    out = sums + (image * tl.num_programs(1) + chunk) * 2 * channels
    tl.store(out + channel, first, mask=inside)
    tl.store(out + channels + channel, second, mask=inside)


@triton.jit
def _scaled_silu(x, scale, shift, out, places, channels, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    image = tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    inside = channel < channels
    place = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    at = (image * places + place[:, None]) * channels + channel[None, :]
    mask = (place[:, None] < places) & inside[None, :]
    factor = tl.load(scale + image * channels + channel, mask=inside, other=0.0)
    offset = tl.load(shift + image * channels + channel, mask=inside, other=0.0)
    value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32) * factor[None, :] + offset[None, :]
    tl.store(out + at, (value / (1.0 + tl.exp(-value))).to(out.dtype.element_ty), mask=mask)


def add_layer_norm(
    x: torch.Tensor,
    delta: torch.Tensor | None,
    norm: nn.LayerNorm,
    dtype: torch.dtype,
    keep: Kept,
    changes: Changes = (None, None, None, 0.0),
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the residual stream after a layer, and the layer norm of `x + delta` in `dtype`.

    Args:
        x: (B, L, D) of a floating dtype, contiguous.
        delta: (B, L, D) of a floating dtype, contiguous; None for nothing.
        norm: its parameters are float32, or it has none.
        keep: "sum" for a residual stream of `x + delta`, "norm" for one of their norm; it has the type of `x`.
        changes: shift, scale, gate and base, as in `fused.Modulation`; the tensors (B, 1, D) have one stride from image
            to image, and 1 from number to number.
    """
    width = x.shape[-1]
    stream = x if delta is None and keep == "sum" else torch.empty_like(x)
    low = torch.empty(x.shape, dtype=dtype, device=x.device)
    shift, scale, gate, base = changes
    strides = [t.stride(0) for t in (shift, scale, gate) if t is not None]
    block = triton.next_power_of_2(width)
    with current_device(x.device):
        _add_layer_norm[(x.numel() // width,)](
            x, x if delta is None else delta, x if gate is None else gate,
            x if norm.weight is None else norm.weight, x if norm.bias is None else norm.bias,
            x if scale is None else scale, x if shift is None else shift, stream, stream, low,
            width, x.shape[-2], strides[0] if strides else 0, base, norm.eps,
            HAS_DELTA=delta is not None, HAS_GATE=gate is not None, HAS_WEIGHT=norm.weight is not None,
            HAS_SHIFT=shift is not None, KEEPS_TOTAL=keep == "sum" and delta is not None, KEEPS_NORMED=keep == "norm",
            BLOCK=block, num_warps=max(1, min(8, block // 256)),
        )  # fmt: skip
    return stream, low


def group_norm_silu(x: torch.Tensor, groups: int, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    """Return silu(group_norm(x)) of a channels-last x (B, C, H, W), of the same type and layout.

    Args:
        weight, bias: (C,) float32.
    """
    images, channels, height, width = x.shape
    places = height * width
    block = triton.next_power_of_2(channels)
    chunks = triton.cdiv(places, _CHUNK_PLACES)
    sums = torch.empty((images, chunks, 2, channels), dtype=torch.float32, device=x.device)
    sizes = {"ROWS": max(1, _TILE // block), "BLOCK": block, "num_warps": 8}
    with current_device(x.device):
        _channel_sums[(images, chunks)](x, sums, places, channels, CHUNK=_CHUNK_PLACES, **sizes)
        means = sums.sum(1).view(images, 2, groups, -1).mean(-1).div_(places)  # (B, 2, groups)
        mean, square = (part.repeat_interleave(channels // groups, 1) for part in means.unbind(1))  # (B, C) each
        scale = weight * ((square - mean * mean).clamp_(min=0) + eps).rsqrt()
        out, shift = torch.empty_like(x), bias - mean * scale
        _scaled_silu[(triton.cdiv(places, sizes["ROWS"]), images)](x, scale, shift, out, places, channels, **sizes)
    return out


def largest_error(device: str) -> float:
    """Return the largest difference between the float32 results of these kernels and torch's, on small inputs."""
    draws = torch.Generator().manual_seed(0)
    x, delta = (torch.randn(2, 16, 8, 8, generator=draws).to(device) for _ in range(2))
    layer, group = nn.LayerNorm(8, device=device), nn.GroupNorm(4, 16, device=device)
    rows, added = x[:, 0], delta[:, 0]  # (2, 8, 8)
    shift, scale, gate = torch.randn(2, 3, 1, 8, generator=draws).to(device).unbind(1)  # (2, 1, 8) each
    with torch.no_grad():
        total = rows + added * (1 + gate)
        wanted = [layer(x + delta), F.silu(group(x)), total, layer(total) * (1 + scale) + shift]
        found = [
            add_layer_norm(x, delta, layer, torch.float32, "sum")[1],
            group_norm_silu(x.to(memory_format=torch.channels_last), 4, group.weight, group.bias, group.eps),
            *add_layer_norm(
                rows.contiguous(), added.contiguous(), layer, torch.float32, "sum", (shift, scale, gate, 1.0)
            ),
        ]
    return max(float((a - b).abs().max()) for a, b in zip(wanted, found, strict=True))
