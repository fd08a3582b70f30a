"""Parallel decoding (MaskGIT, arXiv 2202.04200, section 3.2): predict all masked ids, keep some of them, repeat.

An unmasking rule chooses those that are kept (`unmasking`): the most confident ones, as published, or others. The loop
never waits for the device: the number of ids that stay masked is known beforehand and equal for all rows, so that each
step has fixed shapes. Only the positions that are still masked get logits and noise.

Letters: B batch, K latent tokens, D width, V codebook size, n positions that are still masked.
"""

from typing import Protocol

import torch

from titokctl.config.models import GeneratorConfig
from titokctl.config.sampling import SamplingConfig
from titokctl.models.generator import Known
from titokctl.models.guidance import guided, strength
from titokctl.models.maskgit.masking import tokens_left
from titokctl.models.maskgit.unmasking import Step, rule_named
from titokctl.models.noise import Noise


class Network(Protocol):
    """The two halves of a MaskGIT: `hidden` for all positions, `logits` for those that matter."""

    config: GeneratorConfig

    def hidden(self, ids: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """Return the hidden states (B, K, D)."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits (..., V) float32 of hidden states (..., D)."""


def decode(
    network: Network,
    labels: torch.Tensor | None,
    settings: SamplingConfig,
    noise: Noise,
    known: Known | None = None,
) -> torch.Tensor:
    """Return ids (B, K) int64; arguments as in `Generator.sample` and `Generator.complete`."""
    tokens, mask = network.config.num_latent_tokens, network.config.mask_id
    noise.prepare(settings.num_steps, tokens)
    positions = torch.arange(tokens, device=noise.image_indices.device).expand(len(noise.image_indices), -1)
    ids = torch.full_like(positions, mask)  # (B, K)
    given = positions[:, :0]
    if known is not None:
        ids = torch.where(known.mask, known.ids, ids)
        positions, given = known.mask.long().argsort(dim=1, stable=True).tensor_split([tokens - known.count], dim=1)
    masked_after = rule_named(settings.unmasking)
    for step, left in enumerate(tokens_left(positions.shape[1], settings.num_steps)):
        rest = 1 - (step + 1) / settings.num_steps
        temperature = settings.choice_temperature * rest
        scores = guided_logits(network, ids, labels, positions, strength(settings, step / settings.num_steps))
        if settings.softmax_annealing:
            scores = scores / (0.5 + 0.8 * rest)
        drawn = noise.choose(scores, temperature, step, positions)  # (B, n)
        ids = ids.scatter(1, positions, drawn)
        confidence = scores.gather(-1, drawn[..., None]).squeeze(-1)  # (B, n)
        positions = masked_after(Step(step, left, tokens, positions, confidence, temperature, settings, noise, given))
        ids = ids.scatter(1, positions, mask)
    return ids


def guided_logits(
    network: Network, ids: torch.Tensor, labels: torch.Tensor | None, positions: torch.Tensor, scale: float
) -> torch.Tensor:
    """Return the logits (B, n, V) float32 at `positions` (B, n).

    Rows with their label and with the null label go through the network in one batch. Without guidance (`scale` 0) or
    labels, only one row is needed for each image.
    """
    if scale == 0 or labels is None:
        return _logits_at(network, ids, labels, positions)
    null = torch.full_like(labels, network.config.num_classes)
    both = _logits_at(network, ids.repeat(2, 1), torch.cat([labels, null]), positions.repeat(2, 1))
    return guided(both, scale)


def _logits_at(
    network: Network, ids: torch.Tensor, labels: torch.Tensor | None, positions: torch.Tensor
) -> torch.Tensor:
    hidden = network.hidden(ids, labels)  # (B, K, D)
    chosen = hidden.gather(1, positions[..., None].expand(-1, -1, hidden.shape[-1]))  # (B, n, D)
    return network.logits(chosen)
