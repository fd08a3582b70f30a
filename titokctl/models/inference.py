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
from titokctl.models.precision import Precision, low_dtype
from titokctl.models.titok.decoder import ProxyHead
from titokctl.models.titok.transformer import Mlp
from titokctl.models.vqgan.fast_decoder import FastVqganDecoder
from titokctl.models.vqgan.vqgan import VqganDecoder

Network = TypeVar("Network", bound=nn.Module)
# Their linear layers run in lower precision; all other linear layers and convolutions stay float32.
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


def prepared(
    module: Network, device: torch.device | str, precision: Precision, half: Literal["encoder", "decoder"] | None = None
) -> Network:
    """A copy of `module` for inference on `device`: eval mode, frozen, of the same class and with the same methods.

    Run it inside `precision(name, device)` of the same name. Weights that keep their type are shared with `module`.
    "float32" and "tf32" change no arithmetic.

    Args:
        module: a TiTok or a MaskGit with float32 weights. Take its hashes before: the copy has other tensors.
        half: of a TiTok, the only half that will be used; the other one's weights are neither read nor converted.
    """
    shared = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in module.parameters()}
    ready = copy.deepcopy(module, shared)
    dtype = low_dtype(precision)
    if dtype is not None:
        _lower(
            ready, dtype, unused={"encoder": ("decoder", "proxy_pixels"), "decoder": ("encoder",)}.get(half or "", ())
        )
    return ready.to(device).eval()


def _lower(module: nn.Module, dtype: torch.dtype, low: bool = False, unused: tuple[str, ...] = ()) -> None:
    """Replace the layers inside `module`; `low` says whether it lies in a part that runs in lower precision."""
    low = low or isinstance(module, _LOWERED)
    for name, child in module.named_children():
        if name in unused:
            continue
        if isinstance(child, VqganDecoder):
            setattr(module, name, FastVqganDecoder(child, dtype))
        elif isinstance(child, nn.Linear):
            setattr(module, name, _LowLinear(child, dtype) if low else _ExactLinear(child))
        elif isinstance(child, nn.Conv2d):
            setattr(module, name, _ExactConvolution(child))
        else:
            _lower(child, dtype, low)


class _LowLinear(nn.Module):
    """A linear layer in lower precision, whatever type its input has."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach().to(dtype), requires_grad=False)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().to(dtype), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (..., inputs) -> (..., outputs)
        x = x.to(self.weight.dtype)
        if x.device.type != "cpu" or not x.numel():
            return F.linear(x, self.weight, self.bias)
        # As a 1x1 convolution over channels-last memory: oneDNN's kernel for it is 5 to 10 % faster than for a product.
        rows = x.flatten(0, -2)[None, None].permute(0, 3, 1, 2)  # (1, inputs, 1, rows)
        y = F.conv2d(rows, self.weight[:, :, None, None], self.bias)
        return y.permute(0, 2, 3, 1).view(*x.shape[:-1], len(self.weight))


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
