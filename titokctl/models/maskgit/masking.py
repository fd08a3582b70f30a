"""Masking in training: how much is masked, and the loss of the predictions (MaskGIT, arXiv 2202.04200).

Letters: B batch, K latent tokens, V codebook size.
"""

import torch
from torch.nn import functional as F


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
