"""Activation checkpointing of one block: its activations are computed again in the backward pass instead of kept."""

import contextlib
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint


def run_block(block: nn.Module, x: torch.Tensor, recompute: bool, *more: Any) -> torch.Tensor:
    """Return block(x, *more), the same numbers either way, dropout included.

    `recompute` saves memory for a forward pass.
    """
    kept = not recompute or not torch.is_grad_enabled()
    result: torch.Tensor = (
        block(x, *more) if kept else checkpoint(block, x, *more, use_reentrant=False, context_fn=_contexts)
    )
    return result


def _contexts() -> tuple[Any, Any]:
    """Return contexts for the first pass and for the recomputation, so that both use the same attention kernel.

    `training_attention` forbids the fused kernels on a CPU, and is left before the backward pass.
    """
    plain = not torch.backends.cuda.flash_sdp_enabled()
    return contextlib.nullcontext(), sdpa_kernel(SDPBackend.MATH) if plain else contextlib.nullcontext()
