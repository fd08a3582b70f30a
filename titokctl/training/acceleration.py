"""Options of a recipe for speed or memory: torch.compile and activation checkpointing."""

import warnings
from collections.abc import Iterable

from torch import nn

from titokctl.config.training import TrainingConfig
from titokctl.models.fused import triton_problem


def accelerate(networks: Iterable[nn.Module], config: TrainingConfig) -> None:
    """Compile `networks` in place and let them keep fewer activations, as the recipe says; names of weights stay.

    Each network is compiled as a whole, by default on a GPU only. Activation checkpointing applies to each part with
    transformer blocks; such parts have an attribute `recompute`.
    """
    for network in networks:
        for part in network.modules():
            if hasattr(part, "recompute"):
                part.recompute = config.activation_checkpointing  # type: ignore[assignment]
        if can_compile(network) if config.compile is None else config.compile:
            network.compile()


def can_compile(network: nn.Module) -> bool:
    """Return True if compiling `network` pays: on a GPU for which triton can compile; warns where it can't."""
    if not next(network.parameters()).is_cuda:
        return False
    if problem := triton_problem():
        warnings.warn(f"networks are not compiled, and training takes longer: {problem}", stacklevel=2)
    return not problem
