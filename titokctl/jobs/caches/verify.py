"""`titokctl verify`: is a token cache what it was when it was written, and is every image of its source in it?"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from titokctl.data.sources.opening import reopen_source
from titokctl.distributed.stop import StopRequest
from titokctl.errors import UserError
from titokctl.formats.token_cache import PLAIN, TokenCache
from titokctl.formats.token_checksums import damaged_places
from titokctl.formats.token_folder import damaged_parts
from titokctl.jobs.caches.rows import Originals, tokenizer_of
from titokctl.jobs.tokenize.encode import TileEncoder
from titokctl.models.inference import can_infer, kernels
from titokctl.models.precision import PRECISIONS
from titokctl.models.titok.tokenizer import TiTok
from titokctl.progress import Progress

_MAX_TILE = 1 << 14


@dataclass(frozen=True)
class Agreement:
    """Images that were encoded again: how many, the share of ids (or latents) and of rows that came out the same.

    `made_with` says what is different here from where the cache was made, so that other ids are no fault:
    name -> "then -> now".
    """

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
    agreement = None
    if sample:
        rows = np.sort(np.random.default_rng(seed).choice(len(cache), min(sample, len(cache)), replace=False))
        load = partial(tokenizer_of, cache, tokenizer, runs, device, progress.say)
        agreement = _encoded_again(cache, rows, load, device, progress, stop)
        if not agreement.made_with and agreement.share_of_rows < 1:
            wrong.append(f"{1 - agreement.share_of_rows:.1%} of {len(rows)} images encoded again give other rows")
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
    cache: TokenCache, rows: np.ndarray, load: Callable[[], TiTok], device: str, progress: Progress, stop: StopRequest
) -> Agreement:
    """Encode the images of `rows` as the cache says these were made.

    Raises UserError when the images or the tokenizer are gone.
    """
    originals, head = Originals(cache), cache.header
    made_with: dict[str, Any] = {"precision": "float32", "tile": 1} | head.made_with
    tile = made_with["tile"]
    if made_with["precision"] not in PRECISIONS or not isinstance(tile, int) or not 0 < tile <= _MAX_TILE:
        raise UserError(f"{cache.path} does not say in what tiles and precision its rows were made")
    if not can_infer(device, made_with["precision"]):
        made_with["precision"] = "float32"
    plain = TileEncoder(load(), replace(head, views={}, made_with=made_with), device)
    progress.start("encode again", len(rows))
    same: list[np.ndarray] = []
    for first in range(0, len(rows), plain.tile):
        block = rows[first : first + plain.tile]
        again = plain.rows([originals.pixels(block)], progress.advance)
        same.append(np.equal(cache.view(PLAIN)[block], again[PLAIN]))
        stop.check()
    progress.close()
    equal: np.ndarray = np.concatenate(same).reshape(len(rows), head.num_latent_tokens, -1).min(axis=2)
    now = {"device": torch.device(device).type, "torch": torch.__version__}
    now["kernels"] = kernels(device, made_with["precision"])
    others = {name: f"{head.made_with.get(name)} -> {it}" for name, it in now.items() if head.made_with.get(name) != it}
    return Agreement(len(rows), float(equal.mean()), float(equal.min(axis=1).mean()), others)
