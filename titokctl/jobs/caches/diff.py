"""`titokctl diff`: how far two caches of the same images agree, in ids and in decoded pixels."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from titokctl.config.differences import flat_differences
from titokctl.data.image_decoder import ImageDecoder
from titokctl.distributed.stop import StopRequest
from titokctl.errors import UserError
from titokctl.formats.token_cache import PLAIN, TokenCache
from titokctl.jobs.caches.rows import tokenizer_of
from titokctl.progress import Progress

_ROWS_AT_ONCE = 1 << 16
_DECODED_AT_MOST = 64


@dataclass(frozen=True)
class Difference:
    """How two caches differ.

    `share` of all ids (of latents: numbers) and `share_by_position`; `rows` is the share of rows with any difference.
    `decoded_rows` of these were decoded from both sides: `psnr_of_differing` (dB) is that of their pixels, `psnr` that
    of all rows, those that agree counted as exact; None when nothing was decoded or nothing differs.
    `largest` is the largest difference of a latent.
    """

    rows_compared: int
    view: str
    rows: float
    share: float
    share_by_position: list[float]
    largest: float | None
    decoded_rows: int
    psnr_of_differing: float | None
    psnr: float | None
    made_with: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def diff(
    first: Path,
    second: Path,
    runs: Path,
    *,
    view: str = PLAIN,
    tokenizer: str | None = None,
    device: str = "cpu",
    progress: Progress,
    stop: StopRequest,
) -> Difference:
    """Compare two caches row by row, and some differing rows as pixels.

    Raises UserError when they hold other images, or rows of another shape.
    """
    a, b = TokenCache.open(first), TokenCache.open(second)
    one, other = a.view(view), b.view(view)
    if one.shape != other.shape or a.is_discrete != b.is_discrete:
        raise UserError(f"{first} holds {one.shape} {one.dtype}, {second} {other.shape} {other.dtype}")
    unequal = np.flatnonzero(a.keys != b.keys)
    if len(unequal):
        row = int(unequal[0])
        raise UserError(f"row {row} is {a.key(row)} in {first} and {b.key(row)} in {second}", "compare the same images")
    progress.start("compare", len(a), "rows")
    counts, differing, largest = np.zeros(one.shape[1], np.int64), [], 0.0
    for begin in range(0, len(a), _ROWS_AT_ONCE):
        left, right = one[begin : begin + _ROWS_AT_ONCE], other[begin : begin + _ROWS_AT_ONCE]
        wrong = left != right
        if not a.is_discrete:
            largest = max(largest, float(np.abs(left.astype(np.float32) - right).max()))
            wrong = wrong.any(axis=2)
        counts += wrong.sum(0)
        differing.append(begin + np.flatnonzero(wrong.any(axis=1)))
        progress.advance(len(left))
        stop.check()
    progress.close()
    rows = np.concatenate(differing)
    chosen = rows[np.linspace(0, len(rows) - 1, min(len(rows), _DECODED_AT_MOST)).astype(int)] if len(rows) else rows
    load = partial(tokenizer_of, a, tokenizer, runs, device, progress.say)
    error, remarks = _squared_error(a, b, view, chosen, lambda: ImageDecoder(load(), device, "float32"))
    share = len(rows) / len(a)
    return Difference(
        rows_compared=len(a),
        view=view,
        rows=share,
        share=float(counts.sum() / (len(a) * one.shape[1])),
        share_by_position=(counts / len(a)).tolist(),
        largest=None if a.is_discrete else largest,
        decoded_rows=0 if error is None else len(chosen),
        psnr_of_differing=_psnr(error),
        psnr=_psnr(None if error is None else error * share),
        made_with=flat_differences(a.header.made_with, b.header.made_with),
        remarks=remarks,
    )


def _squared_error(
    a: TokenCache, b: TokenCache, view: str, rows: np.ndarray, load: Callable[[], ImageDecoder]
) -> tuple[float | None, list[str]]:
    """Mean squared error, in levels of 255, between both sides of `rows` decoded; and why it could not be had."""
    if not len(rows):
        return None, []
    if a.header.encoder_sha256 != b.header.encoder_sha256:
        return None, ["pixels are not compared: the caches were made by different tokenizers"]
    try:
        decoder = load()
    except UserError as error:
        return None, [f"pixels are not compared: {error.message}"]
    left, right = (decoder.decoded(np.asarray(cache.view(view)[rows])).astype(np.float64) for cache in (a, b))
    return float(np.square(left - right).mean()), []


def _psnr(error: float | None) -> float | None:
    return 10 * math.log10(255**2 / error) if error else None
