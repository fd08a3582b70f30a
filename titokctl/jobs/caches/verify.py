"""`titokctl verify`: check a token cache against its checksums, its source, and a new encoding of some images."""

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from titokctl.context import Context
from titokctl.data.sources import Source
from titokctl.data.sources.remote import KIND as REMOTE
from titokctl.data.sources.source import difference, passed_over_in_words
from titokctl.errors import UsageError, UserError
from titokctl.formats.token_cache import PLAIN, TokenCache
from titokctl.jobs.caches.rows import RECORDED, Originals, source_named, tokenizer_of
from titokctl.jobs.tokenize.encode import TileEncoder, UnitSettings
from titokctl.models.inference import can_infer, kernels
from titokctl.models.precision import PRECISIONS
from titokctl.readable import counted

_MAX_TILE = 1 << 14


@dataclass(frozen=True)
class Agreement:
    """The result of encoding some images again.

    Args:
        images: how many.
        share_of_ids, share_of_rows: share of the ids (or latent tokens) and of the rows that are the same.
        made_with: what differs between this machine and the one that made the cache, as name -> "then -> now"; where
            anything does, other ids are not an error.
    """

    images: int
    share_of_ids: float
    share_of_rows: float
    made_with: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Verification:
    """The checks that were made: `problems` are what is wrong, `remarks` say which checks could not be made and why."""

    path: Path
    rows: int
    views: list[str]
    sha256: str
    source_checked: bool
    agreement: Agreement | None = None
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Verify:
    """Check structure, types, ids, labels and checksums; with `source` also the rows against their images.

    Args:
        path: the token cache.
        sample: how many random images of the source to encode again.
        seed: decides which.
        tokenizer: what encodes them; None for the one with the recorded hash.
        source: the images that the cache was made from: a path, or "recorded" for the path that the cache records.
            It isn't opened unless it is named, since a cache of unknown origin may record any address.

    Raises UsageError for a sample without a source.
    """

    path: Path
    sample: int = 0
    seed: int = 0
    tokenizer: str | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        if self.sample and self.source is None:
            raise UsageError(
                "--sample needs the images that the cache was made from",
                "add --source recorded to read them at the recorded path, or --source PATH",
            )

    def run(self, context: Context) -> Verification:
        """Return all problems.

        Raises UserError when the file is not a token cache, its structure is damaged, or the sample can't be encoded.
        """
        cache = TokenCache.open(self.path)
        context.progress.start("verify", len(cache) * len(cache.views), "rows")

        def advance(rows: int) -> None:
            context.progress.advance(rows)
            context.stop.check()

        problems = cache.damage(advance)
        context.progress.close()
        wrong, remarks, agreement = self._with_source(cache, context)
        if agreement and not agreement.made_with and agreement.share_of_rows < 1:
            changed = 1 - agreement.share_of_rows
            wrong.append(f"{changed:.1%} of {agreement.images} images encoded again give other rows")
        return Verification(
            self.path, len(cache), list(cache.views), cache.sha256, not remarks, agreement, problems + wrong, remarks
        )

    def _with_source(self, cache: TokenCache, context: Context) -> tuple[list[str], list[str], Agreement | None]:
        """Return what is wrong beside the source, what could not be compared, and how encoding again agrees."""
        if self.source is None:
            return [], ["the images were not named; --source recorded reads them at the recorded path"], None
        source = source_named(self.source, cache, context)
        wrong = _against_source(cache, source, self.source != RECORDED)
        agreement = self._encode_again(cache, source, context) if self.sample and not wrong else None
        unknown = cache.header.num_rejected is None
        return wrong, ["the cache does not record how many images were rejected"] if unknown else [], agreement

    def _encode_again(self, cache: TokenCache, source: Source, context: Context) -> Agreement:
        """Encode random images as the cache records that they were encoded.

        Raises UserError when the images have changed, or the tokenizer is not found.
        """
        chosen = np.random.default_rng(self.seed).choice(len(cache), min(self.sample, len(cache)), replace=False)
        rows, originals = np.sort(chosen), Originals(cache, source, self.source != RECORDED)
        made_with = _repeatable(cache, context.device)
        tokenizer = tokenizer_of(cache, self.tokenizer, context)
        header = replace(cache.header, views={}, made_with=made_with)
        encoder = TileEncoder(tokenizer, UnitSettings.of(header, context.device))
        context.progress.start("encode again", len(rows))
        same: list[np.ndarray] = []
        for first in range(0, len(rows), encoder.tile):
            block = rows[first : first + encoder.tile]
            again = encoder.rows([originals.pixels(block)], context.progress.advance)
            same.append(np.equal(cache.view(PLAIN)[block], again[PLAIN]))
            context.stop.check()
        context.progress.close()
        equal: np.ndarray = np.concatenate(same).reshape(len(rows), cache.header.num_latent_tokens, -1).min(axis=2)
        then = cache.header.made_with
        now = {"device": torch.device(context.device).type, "torch": torch.__version__}
        now["kernels"] = kernels(context.device, made_with["precision"])
        others = {name: f"{then.get(name)} -> {value}" for name, value in now.items() if then.get(name) != value}
        return Agreement(len(rows), float(equal.mean()), float(equal.min(axis=1).mean()), others)


def _repeatable(cache: TokenCache, device: str) -> dict[str, Any]:
    """Return the settings to encode with; float32 in place of a precision that `device` can't compute in."""
    made_with: dict[str, Any] = {"precision": "float32", "tile": 1} | cache.header.made_with
    precision, tile = made_with["precision"], made_with["tile"]
    if precision not in PRECISIONS or not isinstance(tile, int) or not 0 < tile <= _MAX_TILE:
        raise UserError(f"{cache.path} records no valid tile size and precision, so no image can be encoded again")
    return made_with if can_infer(device, precision) else made_with | {"precision": "float32"}


def _against_source(cache: TokenCache, source: Source, is_named: bool) -> list[str]:
    """Return what is wrong with the rows beside their source."""
    recorded, rejected = cache.header.source, cache.header.num_rejected
    if (changed := difference(recorded, source.description, moved=is_named)) is not None:
        return [f"{source.description['paths'][0]} has changed since the cache was made: {changed}"]
    if rejected is not None and not source.is_whole(len(cache) + rejected):
        expected = len(source) + len(source.problems)
        return [
            f"{counted(len(cache), 'rows')} + {rejected:,} rejected, but the source has {counted(expected, 'images')}"
        ]
    # Of shards on a server, it is known only when they are read.
    if source.description["kind"] != REMOTE:
        return _against_counts(recorded, source.description)
    return []


def _against_counts(recorded: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Return what is wrong with the numbers of files and members that were passed over."""
    counts = [_passed_over(one, "folders" in recorded and "folders" in found) for one in (recorded, found)]
    if None in counts or counts[0] == counts[1]:
        return []
    then, now = (passed_over_in_words(one or {}) or "nothing" for one in counts)
    return [f"the source holds {now} besides its images; {then} was passed over when the cache was made"]


def _passed_over(description: dict[str, Any], with_beside: bool) -> Counter[str] | None:
    """Return the recorded numbers, or None if none are recorded that are numbers.

    Args:
        with_beside: count what lies beside shards or tables in their folders, not only members.
    """
    records = [description.get("passed_over"), {} if with_beside else description.get("beside", {})]
    if not all(isinstance(one, dict) and all(type(n) is int for n in one.values()) for one in records):
        return None
    total, beside = map(Counter[str], records)
    return total - beside
