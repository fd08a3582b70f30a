"""`titokctl nll`: the negative log-likelihood of cached ids under a generator, in bits.

Letters: n images, K latent tokens.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from titokctl.config.models import kind_of
from titokctl.context import Context
from titokctl.data.tokens import TokenRows, held_out
from titokctl.errors import UsageError, UserError
from titokctl.formats.token_cache import PLAIN, TokenCache
from titokctl.jobs.caches.rows import open_to_look
from titokctl.jobs.sample.inputs import Given, find_generator
from titokctl.models.generator import Generator, Sizes, check_sizes
from titokctl.models.generator_kinds import kind_class
from titokctl.models.inference import prepared
from titokctl.models.noise import KeyedNoise
from titokctl.models.precision import precision
from titokctl.weights.hashes import check_encoder, weights_sha256
from titokctl.weights.store import build

_ROWS = 128  # scored at once; also the last ones, so that an image's number depends on nothing but itself
_KINDS = {"exact": "exact", "bound": "masked bound: an upper bound, averaged over random orders of the ids"}


@dataclass(frozen=True)
class Likelihood:
    """The negative log-likelihood of images in bits: means over images, each with its standard error.

    Args:
        likelihood: "exact", or that the numbers are the masked bound. The names of a bound's numbers end in "_bound".
        rows: which rows of the cache were scored.
        numbers: bits an id and bits an image, by name; "uniform_bits_per_id" is that of codes that are all equally
            likely.
        by_class: the same by class name, or number, with the count of images; -1 stands for images without a label.
    """

    generator: str
    generator_sha256: str
    tokens: str
    likelihood: str
    rows: str
    images: int
    passes: int
    numbers: dict[str, float | None]
    by_class: dict[str, dict[str, float | None]]


@dataclass(frozen=True)
class Nll:
    """Score the ids of a token cache, each image with its own label; float32.

    Of the cache that the generator was trained on, only the rows that training held out are scored, if it held out any.

    Args:
        cache: a token cache of the tokenizer that the generator was trained for.
        generator: a run, file or known name; None for the newest generator in the runs folder that was trained on
            ids of the cache's tokenizer.
        passes: forward passes an image for the masked bound of a MaskGIT; exact kinds take one.

    Making one raises UsageError for fewer than one pass.
    """

    cache: Path
    generator: str | None = None
    passes: int = 16

    def __post_init__(self) -> None:
        if self.passes < 1:
            raise UsageError(f"--passes must be at least 1, not {self.passes}")

    def run(self, context: Context) -> Likelihood:
        """Return the numbers.

        Raises UserError when the generator has no likelihood, or does not fit the cache; Stopped after a signal.
        """
        cache = open_to_look(self.cache, context)
        given = find_generator(self.generator, context.runs, context.say, encoder=cache.header.encoder_sha256)
        kind = kind_class(given.config).likelihood
        if kind is None:
            raise UserError(
                f"{given.name} is a generator of kind {kind_of(given.config)}, which has no likelihood of ids",
                "name an autoregressive generator or a MaskGIT with --generator",
            )
        _check_fit(given, cache)
        model: Any = build(given.weights, str(given.path), "cpu", None)
        sha256, passes = weights_sha256(model), 1 if kind == "exact" else self.passes
        chosen, words = _scored_rows(given, cache, context)
        rows = TokenRows(cache, (PLAIN,), chosen, context.device)
        if not rows.count:
            raise UserError(f"{self.cache} has no rows to score ({words})", "score a cache of held-out images")
        network = prepared(model, context.device, "float32")
        bits = np.concatenate(list(_bits(network, rows, passes, context)))
        labels = np.asarray(cache.labels if chosen is None else cache.labels[chosen])
        tokens, suffix = cache.num_latent_tokens, "" if kind == "exact" else "_bound"
        numbers = _numbers(bits, tokens, suffix) | {"uniform_bits_per_id": math.log2(given.config.codebook_size)}
        names = given.lineage.get("class_names") or cache.class_names
        return Likelihood(
            given.name,
            sha256,
            str(self.cache),
            _KINDS[kind],
            words,
            len(bits),
            passes,
            numbers,
            {_named(c, names): _numbers(bits[labels == c], tokens, suffix, count=True) for c in np.unique(labels)},
        )


def _check_fit(given: Given, cache: TokenCache) -> None:
    """Raise UserError unless the ids of the cache are those that the generator was trained on."""
    hint = f"tokenize the images again with the generator's tokenizer, or name another generator than {given.name}"
    encoder = cache.header.encoder_sha256
    trained_on = given.lineage.get("encoder_sha256", encoder)
    check_encoder(str(cache.path), encoder, f"the ids that {given.name} was trained on", trained_on, hint)
    ours, sizes = given.config, Sizes(cache.num_latent_tokens, cache.codebook_size)
    check_sizes(given.name, ours, str(cache.path), sizes, hint)
    highest = int(np.max(cache.labels, initial=-1))
    if 0 < ours.num_classes <= highest:
        raise UserError(
            f"{cache.path} has images of class {highest}, and {given.name} has the classes 0 to {ours.num_classes - 1}",
            "score images of the trained classes",
        )


def _scored_rows(given: Given, cache: TokenCache, context: Context) -> tuple[np.ndarray | None, str]:
    """Return the positions of the rows to score (None for all), and words for them."""
    lineage = given.lineage
    if lineage.get("rows_sha256") != cache.sha256:
        if lineage and "rows_sha256" not in lineage:
            context.say(f"{given.name} does not record which rows it was trained on: all rows are scored")
        return None, "all"
    share = lineage.get("val_fraction", 0.0)
    if not share:
        context.progress.warn(
            f"{given.name} was trained on these rows: the numbers are too good for other images. Score a cache of "
            "held-out images instead"
        )
        return None, "all, which the generator was trained on"
    return np.flatnonzero(held_out(cache.keys, share)), f"those held out in training (val_fraction {share:g})"


def _bits(network: Generator, rows: TokenRows, passes: int, context: Context) -> Iterator[np.ndarray]:
    """Yield the bits of each image, (n,) float64, in batches of one size."""
    classes = network.config.num_classes
    context.progress.start("nll", rows.count)
    try:
        for first in range(0, rows.count, _ROWS):
            context.stop.check()
            positions = torch.arange(first, first + _ROWS).clamp(max=rows.count - 1)  # the last row fills up
            batch = rows.at(positions, torch.zeros_like(positions))
            labels = torch.where((batch.labels < 0) | (classes == 0), classes, batch.labels)
            noise = KeyedNoise(0, torch.arange(first, first + _ROWS, device=batch.ids.device))
            with torch.inference_mode(), precision("float32", context.device):
                nats = network.nll(batch.ids, labels, noise, passes)
            count = min(_ROWS, rows.count - first)
            yield nats[:count].cpu().numpy() / math.log(2)
            context.progress.advance(count)
    finally:
        context.progress.close()


def _numbers(bits: np.ndarray, tokens: int, suffix: str, count: bool = False) -> dict[str, float | None]:
    """Return mean and standard error of bits (n,) an image, by name; a single image has no standard error."""
    mean = float(bits.mean())
    error = float(bits.std(ddof=1)) / math.sqrt(len(bits)) if len(bits) > 1 else None
    found: dict[str, float | None] = {
        f"bits_per_id{suffix}": mean / tokens,
        f"standard_error_per_id{suffix}": None if error is None else error / tokens,
        f"bits_per_image{suffix}": mean,
        f"standard_error_per_image{suffix}": error,
    }
    return ({"images": len(bits)} if count else {}) | found


def _named(label: int, names: Any) -> str:
    return str(names[label]) if 0 <= label < len(names) else str(label)
