"""Speed and memory of training: torch.compile, activation checkpointing, and the type of the residual stream."""

import warnings
from collections.abc import Iterable

from torch import nn

from titokctl.config.training import TrainingConfig
from titokctl.models.fused import triton_problem
from titokctl.models.precision import low_dtype
from titokctl.models.transformer import LONGEST_SHORT, SelfAttention

# A convolution of many channels into one, as discriminators end with, lets torch.compile keep the layout (B, C, H, W)
# for the whole network, though the kernels of a GPU work on channels-last memory.
_CHANNELS_LAST = {"force_layout_optimization": True}


def accelerate(
    networks: Iterable[nn.Module], config: TrainingConfig, positions: int | None = None, processes: int = 1
) -> None:
    """Compile `networks` in place and let them keep fewer or smaller activations; names of weights stay.

    Each network is compiled as a whole and for fixed shapes, by default on a GPU only; compiled convolutional networks
    work on channels-last memory. Where several processes train, blocks of a transformer are compiled one by one: the
    backward pass of a whole network gives no gradient before it ends, and none could be sent while it runs.

    Activation checkpointing applies to each part with transformer blocks; such parts have an attribute `recompute`. In
    16-bit precision on a GPU, the residual stream between the blocks of a generator is of 16 bits, too; such parts have
    an attribute `stream_dtype`. Norms, sums and optimizers compute in float32 all the same. Attention over few
    positions is one kernel there.

    Args:
        positions: length of the sequences in which the networks attend; None for long ones.
        processes: how many train the networks together.
    """
    for network in networks:
        on_gpu = next(network.parameters()).is_cuda
        for part in network.modules():
            if isinstance(part, SelfAttention):
                part.in_one_kernel = on_gpu and _fits_one_kernel(part, positions, config)
            if hasattr(part, "recompute"):
                part.recompute = config.activation_checkpointing  # type: ignore[assignment]
            if hasattr(part, "stream_dtype"):
                part.stream_dtype = low_dtype(config.precision) if on_gpu else None  # type: ignore[assignment]
        if can_compile(network) if config.compile is None else config.compile:
            options = _CHANNELS_LAST if _is_convolutional(network) else None
            blocks = [part for part in network.modules() if hasattr(part, "attention")] if processes > 1 else []
            for part in blocks or [network]:
                part.compile(dynamic=False, options=options)


def _fits_one_kernel(attention: SelfAttention, positions: int | None, config: TrainingConfig) -> bool:
    """Return True if `attention` on a GPU can be one kernel; sizes decide, so that a resumed run computes the same."""
    dtype, heads = low_dtype(config.precision), attention.num_heads
    if dtype is None or positions is None or positions > LONGEST_SHORT or triton_problem():
        return False
    from titokctl.models.triton_attention import problem

    found = problem(positions, heads, attention.out.in_features // heads, dtype, attention.dropout)
    if found:
        warnings.warn(f"attention takes torch's kernels, since its own has a problem: {found}", stacklevel=3)
    return not found


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
