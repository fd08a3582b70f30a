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

from titokctl.models.attention import SelfAttention
from titokctl.models.maskgit.uvit import UvitBlock, UvitBody
from titokctl.models.maskgit.vit import VitLayer
from titokctl.models.packed_linear import PackedLinear, PackedMlp, can_pack
from titokctl.models.precision import Precision, low_dtype
from titokctl.models.titok.decoder import ProxyHead
from titokctl.models.titok.transformer import Mlp
from titokctl.models.vqgan.fast_decoder import FastVqganDecoder
from titokctl.models.vqgan.vqgan import VqganDecoder

Network = TypeVar("Network", bound=nn.Module)
# Their linear layers run in the precision asked for; all other linear layers and convolutions stay float32.
_LOWERED = (SelfAttention, Mlp, ProxyHead, VitLayer, UvitBlock, UvitBody)


def fastest_precision(device: torch.device | str) -> Precision:
    """ "bf16" where the device multiplies bfloat16 faster than float32, else "float32".

    A CPU does so with AVX-512 bf16 or AMX; this one is asked, not the one the package was built for.
    """
    if torch.device(device).type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # absent in some builds of torch
    able = torch.backends.mkldnn.is_available() and any(getattr(torch.cpu, name, bool)() for name in asked)
    return "bf16" if able else "float32"


def kernels(device: torch.device | str, precision: Precision) -> Literal["packed", "plain"]:
    """Which linear layers `prepared` takes; they differ in the last bits."""
    packs = torch.device(device).type == "cpu" and can_pack(low_dtype(precision) or torch.float32)
    return "packed" if packs else "plain"


def prepared(
    module: Network, device: torch.device | str, precision: Precision, half: Literal["encoder", "decoder"] | None = None
) -> Network:
    """A copy of `module` for inference on `device`: eval mode, frozen, of the same class and with the same methods.

    Run it inside `precision(name, device)` of the same name. Weights that keep their type and their layout are shared
    with `module`. On a CPU "float32" changes the order of sums in the blocks of transformers, elsewhere no arithmetic.

    Args:
        module: a TiTok or a MaskGit with float32 weights. Take its hashes before: the copy has other tensors.
        half: of a TiTok, the only half that will be used; the other one's weights are neither read nor converted.
    """
    shared = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in module.parameters()}
    ready = copy.deepcopy(module, shared)
    unused = {"encoder": ("decoder", "proxy_pixels"), "decoder": ("encoder",)}.get(half or "", ())
    dtype = low_dtype(precision) or torch.float32
    packs = kernels(device, precision) == "packed"
    if packs or dtype != torch.float32:
        _convert(ready, dtype, packs, unused=unused)
    return ready.to(device).eval()


def _convert(
    module: nn.Module, dtype: torch.dtype, packs: bool, low: bool = False, unused: tuple[str, ...] = ()
) -> None:
    """Replace the layers inside `module`; `low` says whether it lies in a part that runs in lower precision."""
    low = low or isinstance(module, _LOWERED)
    for name, child in module.named_children():
        if name in unused:
            continue
        if packs and isinstance(child, Mlp):
            setattr(module, name, PackedMlp(child.up, child.down, dtype))
        elif low and isinstance(child, nn.Linear):
            setattr(module, name, PackedLinear(child, dtype) if packs else _LowLinear(child, dtype))
        elif dtype == torch.float32 or not (replaced := _beside_blocks(child, dtype)):
            _convert(child, dtype, packs, low)
        else:
            setattr(module, name, replaced)


def _beside_blocks(layer: nn.Module, dtype: torch.dtype) -> nn.Module | None:
    """What takes the place of a layer outside the blocks when these are in lower precision; None: it is looked into."""
    if isinstance(layer, VqganDecoder):
        return FastVqganDecoder(layer, dtype)
    if isinstance(layer, nn.Linear):
        return _ExactLinear(layer)
    return _ExactConvolution(layer) if isinstance(layer, nn.Conv2d) else None


class _LowLinear(nn.Module):
    """A linear layer in lower precision, whatever type its input has."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach().to(dtype), requires_grad=False)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().to(dtype), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (..., inputs) -> (..., outputs)
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias)


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
