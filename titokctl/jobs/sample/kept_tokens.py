"""Ids that images keep: those of a token cache at some positions, while the generator draws the others."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from titokctl.config.models import GeneratorSizes, kind_of
from titokctl.errors import UsageError, UserError
from titokctl.formats.token_cache import TokenCache
from titokctl.models.generator import Known, Sizes, check_keeps, check_sizes
from titokctl.models.generator_kinds import kind_class
from titokctl.readable import counted

_RANGE = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?")


@dataclass(frozen=True)
class KeptTokens:
    """Image i keeps the ids of row i mod N of `cache` (N rows) at `positions`, sorted numbers from 0 to K - 1."""

    cache: TokenCache
    positions: tuple[int, ...]

    def known(self, image_indices: torch.Tensor) -> Known:
        """Return the ids of images (B,) int64, on their device."""
        rows = (image_indices % len(self.cache)).cpu().numpy()
        ids = torch.from_numpy(np.asarray(self.cache.ids[rows]).astype(np.int64)).to(image_indices.device)
        mask = torch.zeros(ids.shape[1], dtype=torch.bool, device=ids.device)
        mask[list(self.positions)] = True
        return Known(ids, mask.expand_as(ids), len(self.positions))

    def labels(self, num_classes: int) -> tuple[int, ...] | None:
        """Return the label of each row; None for a generator without classes.

        Raises UsageError when the cache has labels that the generator does not.
        """
        if num_classes == 0:
            return None
        labels = np.asarray(self.cache.labels)
        wrong = labels[(labels < 0) | (labels >= num_classes)]
        if len(wrong):
            found = "no label" if wrong[0] < 0 else f"labels such as {wrong[0]}"
            raise UsageError(
                f"{counted(len(wrong), 'rows')} of {self.cache.path} with {found}; the generator has labels 0 to "
                f"{num_classes - 1}",
                "name the classes to draw: --classes 0, or --classes none",
            )
        return tuple(labels.tolist())

    @property
    def record(self) -> dict[str, Any]:
        """Return what decides about the images: the contents of the cache, and the positions."""
        return {"contents_sha256": self.cache.sha256, "positions": list(self.positions)}


def open_kept(path: Path, positions: Sequence[int], config: GeneratorSizes) -> KeptTokens:
    """Open the cache at `path`, checked against the generator's sizes.

    Raises UserError when the sizes differ or the kind of generator can't keep ids, and UsageError for positions that an
    image does not have, that this kind can't keep, or all of them.
    """
    kind = kind_class(config)
    check_keeps(kind, config)
    cache, tokens = TokenCache.open_whole(path), config.num_latent_tokens
    sizes = Sizes(cache.num_latent_tokens, cache.codebook_size)
    check_sizes("the generator", config, str(path), sizes, "keep ids of the tokenizer that it was trained for")
    if not len(cache):
        raise UserError(f"{path} has no rows to keep ids of", "name another cache with --keep")
    chosen = tuple(sorted(set(positions)))
    if chosen[-1] >= tokens:
        raise UsageError(
            f"--keep-tokens names token {chosen[-1]}, but an image has the tokens 0 to {tokens - 1}",
            f"e.g. --keep-tokens 0-{(tokens - 1) // 2}",
        )
    if len(chosen) == tokens:
        raise UsageError(
            f"--keep-tokens names all {tokens} tokens, so nothing is left to draw",
            f"`titokctl decode {path} -o images/ --format png` makes images of them",
        )
    if kind.keeps == "first" and chosen != tuple(range(len(chosen))):
        raise UsageError(
            f"a generator of kind {kind_of(config)} draws the ids of an image in their order, so it can keep the first "
            f"ones, positions 0 to N, but --keep-tokens leaves out position {_first_gap(chosen)} before {chosen[-1]}",
            f"e.g. --keep-tokens 0-{min(chosen[-1], tokens - 2)}",
        )
    return KeptTokens(cache, chosen)


def _first_gap(positions: Sequence[int]) -> int:
    return next(i for i, position in enumerate(positions) if position != i)


def parse_positions(text: str) -> tuple[int, ...]:
    """Return the positions in text such as "0-15,20". Raises UsageError for anything else."""
    found: list[int] = []
    for word in text.split(","):
        span = _RANGE.fullmatch(word.strip())
        first, last = (int(span[1]), int(span[2] or span[1])) if span else (1, 0)
        if last < first:
            raise UsageError(f"--keep-tokens {text!r} is not a list of positions", "e.g. --keep-tokens 0-15,20")
        found += range(first, last + 1)
    return tuple(found)
