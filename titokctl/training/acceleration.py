"""Speed and memory of training: torch.compile, activation checkpointing, and the type of the residual stream."""

import warnings
from collections.abc import Iterable

from torch import nn

from titokctl.config.training import TrainingConfig
from titokctl.models.fused import triton_problem
from titokctl.models.precision import low_dtype

# A convolution of many channels into one, as discriminators end with, lets torch.compile keep the layout (B, C, H, W)
# for the whole network, though the kernels of a GPU work on channels-last memory.
_CHANNELS_LAST = {"force_layout_optimization": True}


def accelerate(networks: Iterable[nn.Module], config: TrainingConfig) -> None:
    """Compile `networks` in place and let them keep fewer or smaller activations; names of weights stay.

    Each network is compiled as a whole and for fixed shapes, by default on a GPU only; compiled convolutional networks
    work on channels-last memory. Activation checkpointing applies to each part with transformer blocks; such parts have
    an attribute `recompute`. In 16-bit precision on a GPU, the residual stream between the blocks of a generator is of
    16 bits, too; such parts have an attribute `stream_dtype`. Norms, sums and optimizers compute in float32 all the
    same.
    """
    for network in networks:
        on_gpu = next(network.parameters()).is_cuda
        for part in network.modules():
            if hasattr(part, "recompute"):
                part.recompute = config.activation_checkpointing  # type: ignore[assignment]
            if hasattr(part, "stream_dtype"):
                part.stream_dtype = low_dtype(config.precision) if on_gpu else None  # type: ignore[assignment]
        if can_compile(network) if config.compile is None else config.compile:
            network.compile(dynamic=False, options=_CHANNELS_LAST if _is_convolutional(network) else None)


def can_compile(network: nn.Module) -> bool:
    """Return True if compiling `network` pays: on a GPU for which triton can compile; warns where it can't."""
    if not next(network.parameters()).is_cuda:
        return False
    if problem := triton_problem():
        warnings.warn(f"networks are not compiled, and training takes longer: {problem}", stacklevel=2)
    return not problem


def _is_convolutional(network: nn.Module) -> bool:
    """Return True for encoders and decoders of a VQGAN and for discriminators: they alone have group norms."""
    return any(isinstance(layer, nn.GroupNorm) for layer in network.modules())
