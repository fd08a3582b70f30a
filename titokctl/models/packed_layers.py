"""Layers for CPU inference whose weights are laid out once, in the order oneDNN's kernels read them.

`F.linear` reorders its weights in every call, which takes a third of the time at a few hundred rows. The operators
used here also keep the bits of a row or an image independent of the others and of the number of threads. No single
operator does so for every data type and instruction set (docs/experiments.md):

- linear layers in float32: oneDNN's inner product. Before torch 2.13 its bits depend on the number of rows on a CPU
  without AVX-512, so there they are 1x1 convolutions, too;
- linear layers in bfloat16: oneDNN's 1x1 convolution. With AMX, the inner product splits its sums by the number of
  rows and threads;
- convolutions: oneDNN's, called directly for one image at a time. torch's own takes another kernel for one thread.
"""

import os
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F
from torch.torch_version import TorchVersion

# The layouts are chosen for about this many rows, and places of a picture; other numbers are as fast.
_LAYOUT_ROWS, _LAYOUT_PLACES = 512, 32
# With fewer rows the convolution can fall back to oneDNN's reference kernel, a hundred times slower; a single row of
# the inner product is a matrix-vector product with another order of sums.
_CONVOLVED_ROWS, _MULTIPLIED_ROWS = 128, 2
# Padding, stride, dilation and groups of a 1x1 and of a 3x3 convolution.
_IN_PLACE, _PADDED = ([0, 0], [1, 1], [1, 1], 1), ([1, 1], [1, 1], [1, 1], 1)
InstructionSet = Literal["amx", "avx512_bf16", "avx512", "avx2", "other"]
_ORDER: tuple[InstructionSet, ...] = ("other", "avx2", "avx512", "avx512_bf16", "amx")
# Values of ONEDNN_MAX_CPU_ISA that hold oneDNN below what the CPU has.
_LIMITS: dict[str, InstructionSet] = {
    "SSE41": "other",
    "AVX": "other",
    "AVX2": "avx2",
    "AVX2_VNNI": "avx2",
    "AVX2_VNNI_2": "avx2",
    "AVX512_CORE": "avx512",
    "AVX512_CORE_VNNI": "avx512",
    "AVX512_CORE_BF16": "avx512_bf16",
    "AVX10_1_512": "avx512_bf16",
    "AVX512_CORE_FP16": "avx512_bf16",
}


def instruction_set() -> InstructionSet:
    """Return the widest instruction set that oneDNN may use in this process.

    This is what the CPU has, limited by the environment variable ONEDNN_MAX_CPU_ISA, which oneDNN reads itself.
    """
    # torch has these checks on x86 only.
    checks: dict[InstructionSet, str] = {
        "amx": "_is_amx_tile_supported",
        "avx512_bf16": "_is_avx512_bf16_supported",
        "avx512": "_is_avx512_supported",
        "avx2": "_is_avx2_supported",
    }
    found: InstructionSet = "other"
    for name, check in reversed(checks.items()):
        if getattr(torch.cpu, check, bool)():
            found = name
    word = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()
    limit = _LIMITS.get(word, "amx")
    return found if _ORDER.index(found) < _ORDER.index(limit) else limit


def can_pack(dtype: torch.dtype) -> bool:
    """Return True if this CPU has kernels for `dtype`, and this build of torch the operators that reach them."""
    operators = torch.ops.mkldnn
    if not torch.backends.mkldnn.is_available() or not hasattr(operators, "_reorder_linear_weight"):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and operators._is_mkldnn_bf16_supported())


def _product_keeps_rows() -> bool:
    """Return True if a row of oneDNN's inner product in float32 does not depend on how many there are."""
    return TorchVersion(torch.__version__) >= "2.13" or instruction_set() != "avx2"


class PackedLinear(nn.Module):
    """The same function as `linear`, computed in `dtype` whatever the type of the input; frozen.

    Its packed weights are not a parameter: only oneDNN's kernels can read them.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, self.out_features = dtype, linear.out_features
        weight = linear.weight.detach().to(dtype)  # (outputs, inputs)
        self._as_convolution = dtype == torch.bfloat16 or not _product_keeps_rows()
        if self._as_convolution:
            kernel = weight[:, :, None, None].contiguous(memory_format=torch.channels_last)
            shape = [1, linear.in_features, _LAYOUT_ROWS, 1]
            self._weight = torch.ops.mkldnn._reorder_convolution_weight(kernel, *_IN_PLACE, shape)
        else:
            self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, _LAYOUT_ROWS)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().to(dtype), requires_grad=False)

    @property
    def packed_bytes(self) -> int:
        """Size of the packed weights, in bytes."""
        return int(self._weight.nbytes)

    def forward(self, x: torch.Tensor, then: Literal["none", "gelu"] = "none") -> torch.Tensor:
        """(..., inputs) to (..., outputs), followed by an exact (erf) GELU on request."""
        if not x.numel():
            return x.new_empty((*x.shape[:-1], self.out_features), dtype=self.dtype)
        rows = x.to(self.dtype).flatten(0, -2)  # (rows, inputs)
        count = len(rows)
        if count < (least := _CONVOLVED_ROWS if self._as_convolution else _MULTIPLIED_ROWS):
            rows = F.pad(rows, (0, 0, 0, least - count))
        y = self._convolved(rows, then) if self._as_convolution else self._product(rows, then)
        return y[:count].view(*x.shape[:-1], self.out_features)

    def _convolved(self, rows: torch.Tensor, then: str) -> torch.Tensor:  # (rows, inputs) -> (rows, outputs)
        image = rows.contiguous().view(1, len(rows), 1, -1).permute(0, 3, 1, 2)  # (1, inputs, rows, 1), channels-last
        y = torch.ops.mkldnn._convolution_pointwise(image, self._weight, self.bias, *_IN_PLACE, then, [], "none")
        return y.permute(0, 2, 3, 1).reshape(-1, self.out_features)

    def _product(self, rows: torch.Tensor, then: str) -> torch.Tensor:  # (rows, inputs) -> (rows, outputs)
        return torch.ops.mkldnn._linear_pointwise(rows, self._weight, self.bias, then, [], "none")


class PackedConvolution(nn.Module):
    """The same function as a convolution with stride 1 and padding 1, computed in the data type of `weight`; frozen.

    Args:
        weight: (outputs, inputs, k, k).
        bias: (outputs,), or None.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        weight = weight.detach().contiguous(memory_format=torch.channels_last)
        self.dtype, shape = weight.dtype, [1, weight.shape[1], _LAYOUT_PLACES, _LAYOUT_PLACES]
        self._weight = torch.ops.mkldnn._reorder_convolution_weight(weight, *_PADDED, shape)
        self.bias = None if bias is None else nn.Parameter(bias.detach().to(self.dtype), requires_grad=False)

    @property
    def packed_bytes(self) -> int:
        """Size of the packed weights, in bytes."""
        return int(self._weight.nbytes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, C, H, W) -> (B, D, H', W')
        parts = x.to(self.dtype).contiguous(memory_format=torch.channels_last).split(1)
        found = [
            torch.ops.mkldnn._convolution_pointwise(part, self._weight, self.bias, *_PADDED, "none", [], "none")
            for part in parts
        ]
        return found[0] if len(found) == 1 else torch.cat(found)


def scaled_silu(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Return SiLU(x * scale + shift), with a scale and a shift for each channel.

    torch's float32 SiLU takes other instructions for the last few numbers of each thread, with other last bits.

    Args:
        x: (B, C, H, W) float32, channels-last.
        scale, shift: (C,) float32.
    """
    kernel, channels = scale.view(-1, 1, 1, 1), len(scale)
    return torch.ops.mkldnn._convolution_pointwise(x, kernel, shift, [0, 0], [1, 1], [1, 1], channels, "swish", [], "")


class PackedMlp(nn.Module):
    """Two packed layers with an exact GELU between them that needs no extra pass over memory."""

    def __init__(self, up: nn.Linear, down: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.up, self.down = PackedLinear(up, dtype), PackedLinear(down, dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (..., D)
        return self.down(self.up(x, "gelu"))
