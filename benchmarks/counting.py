"""Counts of operations and bytes, and networks of arbitrary weights to count and measure."""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from titokctl.models.packed_layers import PackedConvolution, PackedLinear

Network = TypeVar("Network", bound=nn.Module)


def counted(run: Callable[[], object]) -> dict[str, float]:
    """`operations` (multiplications and additions of products, convolutions and attention) and `bytes` of `run`.

    Bytes are those of all tensors that go into an operation or come out of it, as if nothing stayed in a cache. Nothing
    is computed: `run` works on fake tensors, so it must not look at values.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    # torch counts the attention kernels of GPUs only, and no packed layers.
    ours = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_operations,
        torch.ops.mkldnn._linear_pointwise: _packed_operations,
        torch.ops.mkldnn._convolution_pointwise: _packed_convolution_operations,
    }
    flops, traffic = FlopCounterMode(display=False, custom_mapping=ours), _Bytes()
    with torch.inference_mode(), fake, flops, traffic:
        run()
    return {"operations": float(flops.get_total_flops()), "bytes": float(traffic.total)}


def _attention_operations(q: Any, k: Any, v: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return sdpa_flop_count(q, k, v)


def _packed_operations(x: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return 2 * x[-1] * math.prod(out_shape)  # (rows, inputs) to (rows, outputs)


def _packed_convolution_operations(
    x: Any, weight: Any, bias: Any, padding: Any, *args: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    height, width = (x[i] + 2 * padding[i - 2] - out_shape[i] + 1 for i in (2, 3))  # of the kernel, with stride 1
    return 2 * x[1] * height * width * math.prod(out_shape)  # (1, inputs, H, W) to (1, outputs, H', W')


class _Bytes(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = torch.utils._pytree.tree_leaves((args, kwargs, out))
            self.total += sum(t.nbytes for t in tensors if isinstance(t, torch.Tensor))
        return out


def fill(module: Network) -> Network:
    """Quick arbitrary weights of the usual size, in place: norms 1, biases 0, the rest by fan-in; frozen."""
    block = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.zero_()
                continue
            flat, scale = parameter.view(-1), max(1, parameter[0].numel()) ** -0.5
            for start in range(0, flat.numel(), len(block)):
                part = flat[start : start + len(block)]
                torch.mul(block[: len(part)], scale, out=part)
        for layer in module.modules():
            if isinstance(layer, nn.LayerNorm | nn.GroupNorm):
                layer.reset_parameters()
    return module.requires_grad_(False).eval()


def weight_bytes(*modules: nn.Module) -> int:
    """Bytes of all parameters of the modules, shared ones once, and of packed weights."""
    shared = {p.data_ptr(): p.nbytes for module in modules for p in module.parameters()}
    layers = (layer for module in modules for layer in module.modules())
    packed = [layer for layer in layers if isinstance(layer, PackedConvolution | PackedLinear)]
    return sum(shared.values()) + sum(layer.packed_bytes for layer in packed)
