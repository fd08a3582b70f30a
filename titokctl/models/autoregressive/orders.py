"""Orders of the ids in training: random permutations at first, the order of the cache at the end (arXiv 2411.00776).

Letters: B batch, K latent tokens.
"""

import torch

from titokctl.config.recipe import AutoregressiveLossConfig, steps_of
from titokctl.models.generator import TrainingStep


def random_share(settings: AutoregressiveLossConfig, step: TrainingStep) -> float:
    """Return the probability that an image's order is random: 1 at first, then falling linearly, at the end 0."""
    full, none = (steps_of(span, step.total) for span in (settings.random_until, settings.annealed_until))
    if step.number < full:
        return 1.0
    return max(0.0, (none - step.number) / (none - full)) if none > full else 0.0


def random_orders(count: int, num_tokens: int, share: float, draws: torch.Generator) -> torch.Tensor:
    """Return (B, K) int64: in each row a random permutation with probability `share`, else 0 to K - 1."""
    is_random = torch.rand(count, 1, generator=draws) < share
    permutations = torch.rand(count, num_tokens, generator=draws).argsort(dim=1)
    return torch.where(is_random, permutations, torch.arange(num_tokens))
