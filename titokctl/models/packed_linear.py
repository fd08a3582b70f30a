"""Linear layers for inference on a CPU, their weights laid out once as oneDNN's kernels read them.

`F.linear` lays them out anew in every call, which at a few hundred rows is a third of the time. Called this way the
bits of a row depend neither on the other rows nor on the number of threads (`F.conv2d` takes another kernel for one
thread). torch.compile uses the same operators, with weights frozen.
"""

from typing import Literal

import torch
from torch import nn

_ROWS = 512  # the layout is chosen for about so many rows; other numbers are as fast


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this CPU has kernels for `dtype`, and this build of torch the operators that reach them."""
    operators = torch.ops.mkldnn
    if not torch.backends.mkldnn.is_available() or not hasattr(operators, "_reorder_linear_weight"):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and operators._is_mkldnn_bf16_supported())


class PackedLinear(nn.Module):
    """The same function as `linear`, in `dtype` whatever type its input has; frozen.

    Its weights are no parameter: nothing but the kernels can read them.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, self.out_features = dtype, linear.out_features
        # Not the 1x1 convolution: with other rows than its layout is for it can take ten times as long.
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().to(dtype), _ROWS)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().to(dtype), requires_grad=False)

    @property
    def packed_bytes(self) -> int:
        """Of what is no parameter."""
        return int(self._weight.nbytes)

    def forward(self, x: torch.Tensor, then: Literal["none", "gelu"] = "none") -> torch.Tensor:
        """(..., inputs) to (..., outputs), with an exact (erf) GELU behind it on request."""
        if not x.numel():
            return x.new_empty((*x.shape[:-1], self.out_features), dtype=self.dtype)
        rows = x.to(self.dtype).flatten(0, -2)  # (rows, inputs)
        y = torch.ops.mkldnn._linear_pointwise(rows, self._weight, self.bias, then, [], "none")
        return y.view(*x.shape[:-1], self.out_features)


class PackedMlp(nn.Module):
    """Two packed layers around an exact GELU that costs no pass over memory of its own."""

    def __init__(self, up: nn.Linear, down: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.up, self.down = PackedLinear(up, dtype), PackedLinear(down, dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (..., D)
        return self.down(self.up(x, "gelu"))
