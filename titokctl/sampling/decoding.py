"""Parallel decoding (MaskGIT, arXiv 2202.04200, section 3.2): all tokens at once, the unsure ones again.

The loop never waits for the device: how many tokens stay masked is known beforehand and equal for all rows, so that
every step has fixed shapes. Only the positions that are still masked get logits and noise.

Letters: B batch, K latent tokens, D width, V codebook size, n positions that are still masked.
"""

import warnings

import torch

from titokctl.config.sampling import SamplingConfig
from titokctl.models.maskgit.generator import MaskGit, check_integers
from titokctl.models.maskgit.mask_schedule import tokens_left
from titokctl.sampling.guidance import strength
from titokctl.sampling.noise import KeyedNoise, Noise


def sample_ids(
    generator: MaskGit,
    labels: torch.Tensor | None,
    config: SamplingConfig,
    image_indices: torch.Tensor | None = None,
    noise: Noise | None = None,
) -> torch.Tensor:
    """Draw the ids of a batch of images.

    Args:
        generator: in any mode; it draws without dropout.
        labels: (B,) integers in [0, num_classes), or None to sample without classes.
        config: settings; `config.seed` keys the noise.
        image_indices: (B,) integers from 0 on, which images of the set these are; 0..B-1 by default, and needed
            when there are no labels.
        noise: another source of randomness than the seed, e.g. recorded numbers.

    Returns: (B, K) int64 in [0, V), on the generator's device.
    Raises: ValueError when labels or indices have a wrong shape, type or range.
    """
    labels, image_indices = _checked(generator, labels, image_indices)
    if config.num_steps > generator.config.num_latent_tokens:
        warnings.warn(too_many_steps(config.num_steps, generator.config.num_latent_tokens), stacklevel=2)
    was_training = generator.training
    generator.eval()
    try:
        return decode_ids(generator, labels, config, image_indices, noise)
    finally:
        generator.train(was_training)


@torch.inference_mode()
def decode_ids(
    generator: MaskGit,
    labels: torch.Tensor | None,
    config: SamplingConfig,
    image_indices: torch.Tensor,
    noise: Noise | None = None,
) -> torch.Tensor:
    """The loop behind `sample_ids`: the same, unchecked; tensors on the generator's device, generator in eval mode."""
    model, batch = generator.config, len(image_indices)
    noise = noise or KeyedNoise(config.seed, image_indices, config.num_steps, model.num_latent_tokens)
    positions = torch.arange(model.num_latent_tokens, device=image_indices.device).expand(batch, -1)
    ids = torch.full_like(positions, model.mask_id)  # (B, K)
    for step, left in enumerate(tokens_left(model.num_latent_tokens, config.num_steps)):
        rest = 1 - (step + 1) / config.num_steps
        temperature = config.choice_temperature * rest
        scores = guided_logits(generator, ids, labels, positions, strength(config, step))  # (B, n, V)
        if config.softmax_annealing:
            scores = scores / (0.5 + 0.8 * rest)
        drawn = noise.choose(scores, temperature, step, positions)  # (B, n)
        ids = ids.scatter(1, positions, drawn)
        confidence = scores.gather(-1, drawn[..., None]).squeeze(-1)  # (B, n)
        if temperature:
            confidence = confidence + temperature * noise.gumbel(step, positions)
        unsure = confidence.argsort(dim=1, stable=True)[:, :left]  # exactly as many in each row, whatever the ties
        positions = positions.gather(1, unsure)
        ids = ids.scatter(1, positions, model.mask_id)
    return ids


def guided_logits(
    generator: MaskGit, ids: torch.Tensor, labels: torch.Tensor | None, positions: torch.Tensor, scale: float
) -> torch.Tensor:
    """Logits (B, n, V) float32 at `positions` (B, n); rows with and without labels go through in one batch.

    Without guidance (`scale` 0) or labels there is no second pass.
    """
    if scale == 0 or labels is None:
        return _logits_at(generator, ids, labels, positions)
    null = torch.full_like(labels, generator.config.num_classes)
    both = _logits_at(generator, ids.repeat(2, 1), torch.cat([labels, null]), positions.repeat(2, 1))
    with_label, without = both.chunk(2)
    return with_label + scale * (with_label - without)


def too_many_steps(num_steps: int, num_tokens: int) -> str:
    """The remark when there are more steps than tokens."""
    return f"{num_steps} steps for {num_tokens} tokens: those beyond {num_tokens} draw the last token again"


def _logits_at(
    generator: MaskGit, ids: torch.Tensor, labels: torch.Tensor | None, positions: torch.Tensor
) -> torch.Tensor:
    hidden = generator.hidden(ids, labels)  # (B, K, D)
    chosen = hidden.gather(1, positions[..., None].expand(-1, -1, hidden.shape[-1]))  # (B, n, D)
    return generator.logits(chosen)


def _checked(
    generator: MaskGit, labels: torch.Tensor | None, image_indices: torch.Tensor | None
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Labels and image indices as int64 on the generator's device."""
    device = next(generator.parameters()).device
    classes = generator.config.num_classes
    if labels is not None:
        _check_integers("labels", labels, classes - 1, f"a generator of {classes} classes")
        labels = labels.to(device, torch.int64)
    if image_indices is None:
        if labels is None:
            raise ValueError("image_indices: expected (B,) integers when labels is None, not None")
        image_indices = torch.arange(len(labels))
    _check_integers("image_indices", image_indices, None, "images counted from 0")
    if labels is not None and len(labels) != len(image_indices):
        raise ValueError(f"image_indices: expected {len(labels)}, one a label, not {len(image_indices)}")
    return labels, image_indices.to(device, torch.int64)


def _check_integers(name: str, values: torch.Tensor, last: int | None, what: str) -> None:
    check_integers(name, values)
    if values.ndim != 1:
        raise ValueError(f"{name}: expected integers of shape (B,), not {tuple(values.shape)}")
    if last is not None and last < 0:
        raise ValueError(f"{name}: expected None for {what}, not {tuple(values.shape)} values")
    wide = values.long()  # the unsigned types have no min or max
    low, high = (int(wide.min()), int(wide.max())) if len(wide) else (0, 0)
    if low < 0 or (last is not None and high > last):
        raise ValueError(f"{name}: expected values {'from 0' if last is None else f'in 0..{last}'} for {what}, "
                         f"not {low}..{high}")  # fmt: skip
