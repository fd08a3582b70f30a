"""Sampling from Python: a generator, labels and settings to ids, with all arguments checked."""

import warnings

import torch

from titokctl.config.sampling import GuidanceConfig, SamplingConfig
from titokctl.models.generator import Generator, check_integers
from titokctl.models.noise import KeyedNoise, Noise


def sample_ids(
    generator: Generator,
    labels: torch.Tensor | None,
    config: GuidanceConfig,
    image_indices: torch.Tensor | None = None,
    noise: Noise | None = None,
) -> torch.Tensor:
    """Draw the ids of a batch of images.

    Args:
        generator: in any mode; it draws without dropout.
        labels: (B,) integers in [0, num_classes), or None to sample without classes.
        config: settings of the generator's kind; `config.seed` keys the noise.
        image_indices: (B,) integers from 0 on, the numbers of these images in the set; 0..B-1 by default. Required
            without labels.
        noise: another source of randomness than the seed, such as recorded numbers.

    Returns: (B, K) int64 in [0, V), on the generator's device.
    Raises: ValueError when labels or indices have a wrong shape, type or range, or `config` belongs to another kind.
    """
    if not isinstance(config, generator.settings_class()):
        wanted = generator.settings_class().__name__
        raise ValueError(f"config: expected the settings of this kind, {wanted}, not {type(config).__name__}")
    labels, image_indices = _checked(generator, labels, image_indices)
    if remark := too_many_steps(config, generator.config.num_latent_tokens):
        warnings.warn(remark, stacklevel=2)
    was_training = generator.training
    generator.eval()
    try:
        return generator.sample(labels, config, noise or KeyedNoise(config.seed, image_indices))
    finally:
        generator.train(was_training)


def too_many_steps(config: GuidanceConfig, num_tokens: int) -> str:
    """Return a remark when a MaskGIT would take more steps than it has tokens, "" otherwise."""
    if not isinstance(config, SamplingConfig) or config.num_steps <= num_tokens:
        return ""
    return f"{config.num_steps} steps for {num_tokens} tokens: those beyond {num_tokens} draw the last token again"


def _checked(
    generator: Generator, labels: torch.Tensor | None, image_indices: torch.Tensor | None
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Return labels and image indices as int64 on the generator's device."""
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
