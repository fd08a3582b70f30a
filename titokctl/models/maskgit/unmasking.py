"""Unmasking rules: which positions are masked after a step of parallel decoding.

A rule is a function of a `Step`. The mask schedule fixes how many positions it returns, the same number in every row,
so that shapes are known beforehand. Packages add rules through the entry-point group "titokctl.unmasking_rules", under
the name that the sampling setting `unmasking` uses.

Letters: B batch, K latent tokens, n positions that are masked before the step.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from titokctl.config.registry import find
from titokctl.config.sampling import CONFIDENCE, RANDOM_ORDER, REMASKING, UNMASKING_ENTRY_POINTS, SamplingConfig
from titokctl.models.noise import Noise


@dataclass(frozen=True)
class Step:
    """A decoding step after its ids were drawn.

    Args:
        number: the number of the step, from 0 on.
        left: how many positions of each row are masked after it; 0 in the last step.
        num_tokens: K.
        positions: (B, n) int64, those that were masked, whose ids were drawn in this step.
        confidence: (B, n) float32, the guided logits of the drawn ids.
        temperature: the scale of the Gumbel noise in this step.
        settings: the sampling settings.
        noise: the only source of randomness.
        given: (B, G) int64, the positions of ids that were given and must never be returned; G is 0 unless some were.
    """

    number: int
    left: int
    num_tokens: int
    positions: torch.Tensor
    confidence: torch.Tensor
    temperature: float
    settings: SamplingConfig
    noise: Noise
    given: torch.Tensor


Rule = Callable[[Step], torch.Tensor]


def rule_named(name: str) -> Rule:
    """Return the rule `name`: a function that returns the positions (B, step.left) int64 that stay or become masked.

    Raises UserError for an unknown name. The function raises ValueError where a rule returns another shape.
    """
    rule: Rule = find("unmasking rule", name, _RULES, UNMASKING_ENTRY_POINTS)

    def checked(step: Step) -> torch.Tensor:
        masked = rule(step)
        wanted = (len(step.positions), step.left)
        if masked.shape != wanted:
            raise ValueError(f"unmasking rule {name!r}: expected positions {wanted}, not {tuple(masked.shape)}")
        return masked

    return checked


def least_confident(step: Step) -> torch.Tensor:
    """Keep the positions with the lowest confidence masked, after Gumbel noise was added (arXiv 2202.04200)."""
    confidence = step.confidence
    if step.temperature:
        confidence = confidence + step.temperature * step.noise.gumbel(step.number, step.positions)
    return _lowest(confidence, step.positions, step.left)


def random_order(step: Step) -> torch.Tensor:
    """Decide positions in a random order that each image draws once, whatever their confidence."""
    return _lowest(step.noise.gumbel(0, step.positions), step.positions, step.left)


def remask(step: Step) -> torch.Tensor:
    """Mask some decided positions again, so that later steps can correct them (ReMDM, arXiv 2503.00307, section 4.1).

    The positions are drawn uniformly from those that were decided before this step. Their number is the share
    `remasking_cap` of these, rounded down, but at most `left`: the paper's sigma = min(cap, sigma_max). Of the masked
    positions, so many more are decided, the most confident ones, that the number of masked ones follows the mask
    schedule. In the last step, where `left` is 0, nothing is masked again.
    """
    settled = torch.cat([step.positions, step.given], dim=1)
    decided = step.num_tokens - settled.shape[1]
    again = min(int(step.settings.remasking_cap * decided), step.left)
    if not again:
        return least_confident(step)
    stays_out = torch.zeros(len(settled), step.num_tokens, device=settled.device, dtype=torch.int64)
    stays_out = stays_out.scatter(1, settled, 1)
    drawn = stays_out.argsort(dim=1, stable=True)[:, :decided]  # (B, K - n - G)
    masked_again = _lowest(step.noise.gumbel(step.number, drawn), drawn, again)
    return torch.cat([least_confident(replace(step, left=step.left - again)), masked_again], dim=1)


def _lowest(values: torch.Tensor, positions: torch.Tensor, count: int) -> torch.Tensor:
    """Return the `count` positions with the lowest values, exactly as many in each row, whatever the ties."""
    return positions.gather(1, values.argsort(dim=1, stable=True)[:, :count])


_RULES: dict[str, Rule] = {CONFIDENCE: least_confident, RANDOM_ORDER: random_order, REMASKING: remask}
