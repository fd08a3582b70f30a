"""Masking: mask schedules, and for training the masked positions and the loss of the predictions.

A mask schedule is the share gamma(t) of masked tokens at time t, from 1 at t = 0 down to 0 at t = 1. Training draws t
uniformly; parallel decoding walks t = 1/S, 2/S, ..., 1 (MaskGIT, arXiv 2202.04200, section 3.1).

Letters: B batch, K latent tokens, V codebook size.
"""

import math
from typing import Any, TypeVar, get_args

import torch
from torch.nn import functional as F

from titokctl.config.recipe import MaskScheduleName

SCHEDULES = get_args(MaskScheduleName)
T = TypeVar("T", float, torch.Tensor)


def mask_ratio(t: T, schedule: str) -> T:
    """Return the share of masked tokens at time `t`.

    Args:
        t: a number or a float tensor of any shape, in [0, 1].
        schedule: one of `SCHEDULES`.

    Returns: the same kind and shape as `t`, in [0, 1].
    Raises: ValueError for an unknown schedule.
    """
    # math and torch share the names of these functions; plain numbers stay plain, in double precision.
    library: Any = torch if isinstance(t, torch.Tensor) else math
    if schedule == "arccos":
        return library.acos(t) / (math.pi * 0.5)
    if schedule == "cosine":
        return library.cos(t * (math.pi * 0.5))
    if schedule == "linear":
        return 1 - t
    if schedule == "root":
        return 1 - library.sqrt(t)
    raise ValueError(f"unknown mask schedule {schedule!r}: expected one of {', '.join(SCHEDULES)}")


def tokens_left(num_tokens: int, num_steps: int, schedule: str = "arccos") -> list[int]:
    """Return how many of `num_tokens` stay masked after each of `num_steps` decoding steps.

    Every step but the last leaves at least one token masked, and settles at least one while more than one is open;
    after the last nothing is masked. With more steps than tokens the surplus draws the last open token again.

    Returns: `num_steps` plain numbers that never rise; the last is 0.
    """
    left, before = [], num_tokens
    for step in range(1, num_steps):
        wanted = math.floor(num_tokens * mask_ratio(step / num_steps, schedule))
        before = max(1, min(before - 1, wanted))
        left.append(before)
    return [*left, 0]


def masked_count(ratio: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """Return the number of masked positions of each row, (B,) int64: round(K x ratio), at least one."""
    return (ratio * num_tokens).round().long().clamp(1, num_tokens)


def random_subset(count: torch.Tensor, num_tokens: int, draws: torch.Generator) -> torch.Tensor:
    """Return (B, K) bool with exactly `count` (B,) true positions in each row, all subsets equally likely."""
    order = torch.rand(len(count), num_tokens, generator=draws).argsort(dim=1)
    first = torch.arange(num_tokens) < count.unsqueeze(1)
    return torch.zeros_like(first).scatter_(1, order, first)


def masked_token_weights(masked: torch.Tensor, unmasked_weight: float) -> torch.Tensor:
    """Return (B, K) float32: 1 where `masked` (B, K) bool, `unmasked_weight` elsewhere."""
    return torch.where(masked, 1.0, unmasked_weight)


def masked_token_loss(
    logits: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, label_smoothing: float
) -> torch.Tensor:
    """Return the weighted sum of the cross-entropy in nats; the sum of all weights of the global batch divides it.

    Args:
        logits: (B, K, V).
        ids: (B, K) int64, the right codes.
        weights: (B, K) float32 from `masked_token_weights`.
        label_smoothing: share of the target spread evenly over the V codes.

    Source: bytedance/1d-tokenizer, commit 942a96f (masked-token loss of the generator).
    """
    losses = F.cross_entropy(
        logits.float().flatten(0, 1), ids.flatten(), reduction="none", label_smoothing=label_smoothing
    )
    return (losses * weights.flatten()).sum()


def masked_accuracy(logits: torch.Tensor, ids: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
    """Return the mean over rows of the share of masked positions whose most likely code is right; a device scalar.

    Every row has a masked position. Source: bytedance/1d-tokenizer, commit 942a96f (it averages row by row too).
    """
    right = (logits.argmax(-1) == ids) & masked
    return (right.sum(-1) / masked.sum(-1)).mean()
