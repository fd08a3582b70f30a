"""Options of a recipe for speed or memory: torch.compile and activation checkpointing."""

from collections.abc import Iterable

from torch import nn

from titokctl.config.training import TrainingConfig


def accelerate(networks: Iterable[nn.Module], config: TrainingConfig) -> None:
    """Compile `networks` in place and let them keep fewer activations, as the recipe says; names of weights stay.

    Each network is compiled as a whole, by default on a GPU only. Activation checkpointing applies to each part with
    transformer blocks; such parts have an attribute `recompute`.
    """
    for network in networks:
        for part in network.modules():
            if hasattr(part, "recompute"):
                part.recompute = config.activation_checkpointing  # type: ignore[assignment]
        on_gpu = next(network.parameters()).is_cuda
        if on_gpu if config.compile is None else config.compile:
            network.compile()
