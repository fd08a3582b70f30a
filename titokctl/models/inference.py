"""Networks made ready to run, not to train: frozen, weights converted once, memory laid out as the device likes it.

What is fast in lower precision is most of the arithmetic: the blocks of the transformers and the VQGAN decoder. What
stays float32 costs next to nothing and decides about the last bits: the residual stream, norms, tables, quantizers,
and the layers at both ends (pixels in, latents, logits over codes, pixels out).
"""

import copy
from typing import Literal, TypeVar

import torch
from torch import nn
from torch.nn import functional as F

from titokctl.errors import UsageError
from titokctl.models.autoregressive.transformer import AutoregressiveBlock
from titokctl.models.flow.transformer import FlowBlock
from titokctl.models.fused import CausalBlock, ConditionedBlock, LowLinear, PostNormBlocks, PreNormBlocks, uses_triton
from titokctl.models.maskgit.uvit import UvitBlock, UvitBody
from titokctl.models.maskgit.vit import VitLayer
from titokctl.models.packed_layers import (
    PackedConvolution,
    PackedLinear,
    PackedMlp,
    can_pack,
    instruction_set,
)
from titokctl.models.precision import Precision, low_dtype
from titokctl.models.titok.vit import Encoder, ProxyHead
from titokctl.models.transformer import Block, Mlp, SelfAttention
from titokctl.models.vqgan.fast_decoder import FastVqganDecoder
from titokctl.models.vqgan.vqgan import VqganDecoder

Network = TypeVar("Network", bound=nn.Module)
# Their linear layers run in the precision asked for; all other linear layers and convolutions stay float32.
_LOWERED = (SelfAttention, Mlp, ProxyHead, VitLayer, UvitBlock, UvitBody, AutoregressiveBlock)


def fastest_precision(device: torch.device | str) -> Precision:
    """Return "bf16" where the device multiplies bfloat16 faster than float32, else "float32".

    A CPU does so with AVX-512 bf16 or AMX, unless ONEDNN_MAX_CPU_ISA holds oneDNN below them.
    """
    if torch.device(device).type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if torch.device(device).type == "mps":
        return "float32"  # not measured
    able = torch.backends.mkldnn.is_available() and instruction_set() in ("amx", "avx512_bf16")
    return "bf16" if able else "float32"


def encoding_precision(device: torch.device | str) -> Precision:
    """Return the precision of token caches: "fp16" on a GPU, "float32" on a CPU.

    On an H200 fp16 keeps 99.8 % of the ids, TF32 99.7 %, and its matrix products are 13 times as fast as float32's.
    bfloat16, the only 16-bit type of CPUs, keeps 98.5 %.
    """
    return "float32" if torch.device(device).type == "cpu" else "fp16"


def kernels(device: torch.device | str, precision: Precision) -> str:
    """Return the name of the kernels that `prepared` uses: "packed-amx", "packed-avx512", ..., "triton", "plain".

    Networks prepared with other kernels give other last bits, so products record this name.
    """
    dtype = low_dtype(precision) or torch.float32
    if torch.device(device).type != "cpu":
        return "triton" if dtype != torch.float32 and uses_triton(device) else "plain"
    if not can_pack(dtype):
        return "plain"
    found = instruction_set()
    # The float32 kernels are the same with and without the instructions for bfloat16.
    return f"packed-{'avx512' if dtype == torch.float32 and found in ('amx', 'avx512_bf16') else found}"


def can_infer(device: torch.device | str, precision: Precision) -> bool:
    """Return True if `prepared` takes `precision` on `device`, with rows that depend on nothing but themselves.

    A CPU without AVX-512 emulates bfloat16, slowly and with bits that depend on the number of threads.
    """
    dtype = low_dtype(precision)
    return dtype is None or torch.device(device).type != "cpu" or (dtype == torch.bfloat16 and can_pack(dtype))


def check_infers(device: torch.device | str, precision: Precision) -> None:
    """Raise UsageError for a precision that this CPU has no kernels for."""
    if not can_infer(device, precision):
        raise UsageError(f"this CPU has no kernels for {precision}", "use --precision float32")


def prepared(
    module: Network, device: torch.device | str, precision: Precision, half: Literal["encoder", "decoder"] | None = None
) -> Network:
    """A copy of `module` for inference on `device`: eval mode, frozen, of the same class and with the same methods.

    Run it inside `precision(name, device)` of the same name. Weights that keep their type and their layout are shared
    with `module`. On a CPU "float32" changes the order of sums, on a GPU no arithmetic. The encoder of a TiTok in a
    16-bit precision on a GPU computes of its last block only the latent tokens.

    Args:
        module: a TiTok or a generator with float32 weights. Take its hashes before: the copy has other tensors.
        half: of a TiTok, the only half that will be used; the other one's weights are neither read nor converted.

    Raises UsageError for a precision that this CPU has no kernels for.
    """
    check_infers(device, precision)
    shared = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in module.parameters()}
    ready = copy.deepcopy(module, shared)
    unused = {"encoder": ("decoder", "proxy_pixels"), "decoder": ("encoder",)}.get(half or "", ())
    dtype = low_dtype(precision) or torch.float32
    if dtype != torch.float32 or torch.device(device).type == "cpu":
        convert(ready, dtype, torch.device(device).type == "cpu", unused=unused)
    return ready.to(device).eval()


def convert(
    module: nn.Module, dtype: torch.dtype, on_cpu: bool, low: bool = False, unused: tuple[str, ...] = ()
) -> None:
    """Replace the layers inside `module`; `low` says whether it lies in a part that runs in lower precision."""
    low = low or isinstance(module, _LOWERED)
    for name, child in module.named_children():
        if name in unused:
            continue
        fused = None if on_cpu or dtype == torch.float32 else _fused(module, child, dtype)
        if fused is not None:
            setattr(module, name, fused)
        elif on_cpu and can_pack(dtype) and isinstance(child, Mlp):
            setattr(module, name, PackedMlp(child.up, child.down, dtype))
        elif isinstance(child, nn.Linear):
            setattr(module, name, _linear(child, dtype if low else torch.float32, on_cpu))
        elif isinstance(child, VqganDecoder):
            setattr(module, name, FastVqganDecoder(child, dtype, on_cpu))
        elif isinstance(child, nn.Conv2d):
            packs = on_cpu and can_pack(torch.float32)
            setattr(module, name, PackedConvolution(child.weight, child.bias) if packs else _ExactConvolution(child))
        else:
            convert(child, dtype, on_cpu, low)


def _fused(parent: nn.Module, child: nn.Module, dtype: torch.dtype) -> nn.Module | None:
    """Return what stands for transformer blocks on a GPU; None for another module."""
    if isinstance(child, UvitBlock):
        return PreNormBlocks([child], dtype)
    if isinstance(child, AutoregressiveBlock):
        return CausalBlock(child, dtype)
    if isinstance(child, FlowBlock):
        return ConditionedBlock(child, dtype)
    if not isinstance(child, nn.ModuleList) or not len(child):
        return None
    if isinstance(child[0], Block):
        last = parent.config.num_latent_tokens if isinstance(parent, Encoder) else None
        return nn.ModuleList([PreNormBlocks(child, dtype, last)])
    return nn.ModuleList([PostNormBlocks(child, dtype)]) if isinstance(child[0], VitLayer) else None


def _linear(layer: nn.Linear, dtype: torch.dtype, on_cpu: bool) -> nn.Module:
    """Return the layer that computes `layer` in `dtype`."""
    if on_cpu and can_pack(dtype):
        return PackedLinear(layer, dtype)
    return _ExactLinear(layer) if dtype == torch.float32 else LowLinear(layer, dtype)


class _ExactLinear(nn.Module):
    """A linear layer that stays float32 where autocast is on."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), self.weight, self.bias)


class _ExactConvolution(nn.Module):
    """A convolution that stays float32 where autocast is on."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            # One image at a time on a CPU, which takes another kernel for a batch of small ones, with other last bits.
            parts = x.float().split(1 if x.device.type == "cpu" else max(1, len(x)))
            return torch.cat([self.conv(part) for part in parts])
