"""`titokctl verify`: is a token cache what it was when it was written, and is every image of its source in it?"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.data.sources.opening import reopen_source
from titokctl.distributed.stop import StopRequest
from titokctl.errors import UserError
from titokctl.formats.token_cache import PLAIN, TokenCache
from titokctl.formats.token_checksums import damaged_places
from titokctl.formats.token_folder import damaged_parts
from titokctl.jobs.cached_rows import Originals, tokenizer_of
from titokctl.jobs.tile_encoder import TileEncoder
from titokctl.progress import Progress


@dataclass(frozen=True)
class Agreement:
    """Images that were encoded again: how many, the share of ids (or latents) and of rows that came out the same."""

    images: int
    share_of_ids: float
    share_of_rows: float
    made_with: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Verification:
    """What was checked, and what is wrong; `remarks` are checks that could not be made."""

    path: Path
    rows: int
    views: list[str]
    sha256: str
    source_checked: bool
    agreement: Agreement | None = None
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def verify(
    path: Path,
    *,
    sample: int = 0,
    seed: int = 0,
    tokenizer: str | None = None,
    runs: Path = Path("runs"),
    device: str = "cpu",
    progress: Progress,
    stop: StopRequest,
) -> Verification:
    """Check structure, types, ids, labels, checksums, and the number of rows against the source, if that is there.

    Args:
        sample: random images to encode again.
        seed: which ones.
        tokenizer: what encodes them; None for the one with the recorded hash.
        runs: where it is looked for.

    Raises UserError when the file is no token cache or its structure is wrong, or the sample can't be encoded; what
    else is wrong is in `problems`.
    """
    cache = TokenCache.open(path)
    progress.start("verify", len(cache) * len(cache.views), "rows")

    def advance(rows: int) -> None:
        progress.advance(rows)
        stop.check()

    problems = damaged_parts(path, advance) if path.is_dir() else damaged_places(path, advance)
    progress.close()
    wrong, remarks = _against_source(cache)
    agreement = _encoded_again(cache, sample, seed, tokenizer, runs, device, progress, stop) if sample else None
    if agreement is not None and not agreement.made_with and agreement.share_of_rows < 1:
        wrong.append(f"{1 - agreement.share_of_rows:.1%} of {agreement.images} images encoded again give other rows")
    return Verification(
        path, len(cache), list(cache.views), cache.sha256, not remarks, agreement, problems + wrong, remarks
    )


def _against_source(cache: TokenCache) -> tuple[list[str], list[str]]:
    """Problems with the number of rows, and why it could not be checked."""
    recorded, rejected = cache.header.source, cache.header.num_rejected
    paths = recorded.get("paths")
    if rejected is None or not isinstance(paths, list) or not paths:
        return [], ["the cache does not say which images it was made of"]
    try:
        source = reopen_source(recorded)
    except UserError as error:
        return [], [f"the source can't be read: {error.message}"]
    if source.description.get("fingerprint") != recorded.get("fingerprint"):
        return [], [f"the source {paths[0]} has changed since the cache was made"]
    if not source.is_whole(len(cache) + rejected):
        expected = len(source) + len(source.problems)
        return [f"{len(cache):,} rows + {rejected:,} rejected, but the source has {expected:,} images"], []
    return [], []


def _encoded_again(
    cache: TokenCache,
    sample: int,
    seed: int,
    tokenizer: str | None,
    runs: Path,
    device: str,
    progress: Progress,
    stop: StopRequest,
) -> Agreement:
    """Encode random images as the cache says its rows were made.

    Raises UserError when the images or the tokenizer are gone.
    """
    originals = Originals(cache)
    model = tokenizer_of(cache, tokenizer, runs, device, progress.say)
    head = cache.header
    config = PreprocessingConfig.model_validate(head.preprocessing)
    count = min(sample, len(cache))
    rows = np.sort(np.random.default_rng(seed).choice(len(cache), count, replace=False))
    made_with = head.made_with | {"precision": _precision(head.made_with.get("precision", "float32"), device)}
    plain = TileEncoder(model, replace(head, views={}, made_with=made_with), config, device)
    progress.start("encode again", count)
    same: list[np.ndarray] = []
    for first in range(0, count, plain.tile):
        block = rows[first : first + plain.tile]
        again, _ = plain.rows(originals.pixels(block), [], progress.advance)
        same.append(np.equal(cache.view(PLAIN)[block], again))
        stop.check()
    progress.close()
    equal: np.ndarray = np.concatenate(same).reshape(count, head.num_latent_tokens, -1).min(axis=2)
    return Agreement(count, float(equal.mean()), float(equal.min(axis=1).mean()), _other_makers(head.made_with, device))


def _precision(name: str, device: str) -> str:
    """The recorded precision where this device has it."""
    return "float32" if name == "fp16" and device == "cpu" else name


def _other_makers(recorded: dict[str, object], device: str) -> dict[str, str]:
    """What is different here from where the cache was made, so that other ids are no fault: name -> "then -> now"."""
    now = {"device": torch.device(device).type, "torch": torch.__version__}
    return {name: f"{recorded.get(name)} -> {value}" for name, value in now.items() if recorded.get(name) != value}
