"""Losses that are not a network's own business.

Letters: B batch, K latent tokens, V codebook size.
"""

import torch
from torch.nn import functional as F


def masked_token_weights(masked: torch.Tensor, unmasked_weight: float) -> torch.Tensor:
    """(B, K) float32: 1 where `masked` (B, K) bool, `unmasked_weight` elsewhere."""
    return torch.where(masked, 1.0, unmasked_weight)


def masked_token_loss(
    logits: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, label_smoothing: float
) -> torch.Tensor:
    """Weighted sum of the cross-entropy in nats; divide by the sum of all weights of the global batch.

    Args:
        logits: (B, K, V).
        ids: (B, K) int64, the truth.
        weights: (B, K) float32 from `masked_token_weights`.
        label_smoothing: share of the target spread evenly over the V codes.

    Source: bytedance/1d-tokenizer, commit 942a96f (masked-token loss of the generator).
    """
    losses = F.cross_entropy(
        logits.float().flatten(0, 1), ids.flatten(), reduction="none", label_smoothing=label_smoothing
    )
    return (losses * weights.flatten()).sum()


def masked_accuracy(logits: torch.Tensor, ids: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
    """Mean over rows of the share of masked positions whose most likely code is the true one; a device scalar.

    Every row has a masked position. Source: bytedance/1d-tokenizer, commit 942a96f (it averages row by row too).
    """
    right = (logits.argmax(-1) == ids) & masked
    return (right.sum(-1) / masked.sum(-1)).mean()
