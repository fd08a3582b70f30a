"""Activation checkpointing of one block: its activations are computed again in the backward pass instead of kept."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def run_block(block: nn.Module, x: torch.Tensor, recompute: bool) -> torch.Tensor:
    """block(x), the same numbers either way, dropout included; `recompute` saves memory and costs a forward pass."""
    kept = not recompute or not torch.is_grad_enabled()
    result: torch.Tensor = block(x) if kept else checkpoint(block, x, use_reentrant=False)
    return result
