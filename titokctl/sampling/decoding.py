"""Sampling from Python: a generator, labels and settings to ids, with all arguments checked."""

import warnings

import torch

from titokctl.config.sampling import GuidanceConfig, SamplingConfig
from titokctl.models.generator import Generator, Known, check_integers, check_keeps
from titokctl.models.noise import KeyedNoise, Noise


def sample_ids(
    generator: Generator,
    labels: torch.Tensor | None,
    config: GuidanceConfig,
    image_indices: torch.Tensor | None = None,
    noise: Noise | None = None,
    *,
    known: torch.Tensor | None = None,
    known_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Draw the ids of a batch of images.

    Args:
        generator: in any mode; it draws without dropout.
        labels: (B,) integers in [0, num_classes), or None to sample without classes.
        config: settings of the generator's kind; `config.seed` keys the noise.
        image_indices: (B,) integers from 0 on, the numbers of these images in the set; 0..B-1 by default. Required
            without labels and known ids.
        noise: another source of randomness than the seed, such as recorded numbers.
        known: (B, K) integers in [0, V): ids that stay as they are where `known_mask` is true; the others are drawn.
        known_mask: (K,) or (B, K) bool, with the same number of true values in each row; for an autoregressive
            generator, these are the first ones.

    Returns: (B, K) int64 in [0, V), on the generator's device.
    Raises: ValueError when labels, indices or known ids have a wrong shape, type or range, or `config` belongs to
        another kind; UserError when generators of this kind can't keep ids.
    """
    if not isinstance(config, generator.settings_class()):
        wanted = generator.settings_class().__name__
        raise ValueError(f"config: expected the settings of this kind, {wanted}, not {type(config).__name__}")
    given = None
    if known is not None or known_mask is not None:
        check_keeps(type(generator), generator.config)
        given = _known(generator, known, known_mask)
    if given is not None and labels is None and image_indices is None:
        image_indices = torch.arange(len(given.ids))
    labels, image_indices = _checked(generator, labels, image_indices)
    if given is not None and len(given.ids) != len(image_indices):
        raise ValueError(f"known: expected ids of {len(image_indices)} images, not of {len(given.ids)}")
    if given is not None and given.count == given.ids.shape[1]:
        return given.ids.clone()
    if remark := too_many_steps(config, generator.config.num_latent_tokens):
        warnings.warn(remark, stacklevel=2)
    was_training = generator.training
    generator.eval()
    try:
        noise = noise or KeyedNoise(config.seed, image_indices)
        if given is None:
            return generator.sample(labels, config, noise)
        return generator.complete(labels, config, noise, given)
    finally:
        generator.train(was_training)


def too_many_steps(config: GuidanceConfig, num_tokens: int) -> str:
    """Return a remark when a MaskGIT would take more steps than it has tokens, "" otherwise."""
    if not isinstance(config, SamplingConfig) or config.num_steps <= num_tokens:
        return ""
    return f"{config.num_steps} steps for {num_tokens} tokens: those beyond {num_tokens} draw the last token again"


def _known(generator: Generator, ids: torch.Tensor | None, mask: torch.Tensor | None) -> Known:
    """Return the given ids on the generator's device, checked."""
    tokens, last = generator.config.num_latent_tokens, generator.config.codebook_size - 1
    if ids is None or mask is None:
        raise ValueError("known and known_mask: expected both, or neither")
    check_integers("known", ids)
    if ids.ndim != 2 or ids.shape[1] != tokens:
        raise ValueError(f"known: expected integers of shape (B, {tokens}), not {tuple(ids.shape)}")
    if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool or mask.shape not in ((tokens,), ids.shape):
        raise ValueError(f"known_mask: expected a bool tensor of shape ({tokens},) or {tuple(ids.shape)}")
    device = next(generator.parameters()).device
    ids, mask = ids.to(device, torch.int64), mask.to(device).expand(ids.shape)
    counts, used = mask.sum(dim=1), ids[mask]
    if len(counts) and int(counts.min()) != int(counts.max()):
        raise ValueError(
            f"known_mask: expected equally many in each row, not {int(counts.min())} to {int(counts.max())}"
        )
    if generator.keeps == "first" and not torch.equal(mask, mask.sort(dim=1, descending=True).values):
        raise ValueError("known_mask: expected the first positions of each row: this kind draws ids in their order")
    if len(used) and not 0 <= int(used.min()) <= int(used.max()) <= last:
        raise ValueError(f"known: expected values in 0..{last}, not {int(used.min())}..{int(used.max())}")
    return Known(ids, mask, int(counts[0]) if len(counts) else 0)


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
