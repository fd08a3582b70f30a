"""`titokctl diff`: differences between two caches of the same images, in ids and in decoded pixels."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from titokctl.config.differences import flat_differences
from titokctl.context import Context
from titokctl.data.image_decoder import ImageDecoder
from titokctl.errors import UserError
from titokctl.evaluation.reconstruction import psnr
from titokctl.formats.token_cache import PLAIN, TokenCache
from titokctl.jobs.caches.rows import open_to_look, tokenizer_of

_ROWS_AT_ONCE = 1 << 16
_DECODED_AT_MOST = 64


@dataclass(frozen=True)
class Difference:
    """Differences between two caches.

    Args:
        rows: share of the rows that differ anywhere.
        share, share_by_position: share of the ids that differ, or of the latent tokens, which are vectors.
        largest: the largest difference between two latents' components; None for ids.
        decoded_rows: how many differing rows were decoded from both caches.
        psnr_of_differing: PSNR in dB between the pixels of these rows; None when nothing was decoded or differs.
        psnr: the same over all rows, counting rows that agree as exact.
        made_with: what was different when the caches were made, as lines "name: first -> second".
        remarks: comparisons that could not be made, and why.
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


@dataclass(frozen=True)
class Diff:
    """Compare two caches of the same images row by row, and decode up to 64 of the rows that differ.

    Args:
        first, second: the token caches.
        view: the view to compare.
        tokenizer: what decodes the rows; None for the one with the recorded hash.
    """

    first: Path
    second: Path
    view: str = PLAIN
    tokenizer: str | None = None

    def run(self, context: Context) -> Difference:
        """Compare. Raises UserError when the caches hold other images, or rows of another shape."""
        a, b = self._open(context)
        counts, rows, largest = _compare_rows(a, b, self.view, context)
        share = len(rows) / len(a)
        load = partial(tokenizer_of, a, self.tokenizer, context)
        decoded = (
            rows[np.linspace(0, len(rows) - 1, _DECODED_AT_MOST).astype(int)] if len(rows) > _DECODED_AT_MOST else rows
        )
        error, remarks = _squared_error(
            a, b, self.view, decoded, lambda: ImageDecoder(load(), context.device, "float32")
        )
        return Difference(
            rows_compared=len(a),
            view=self.view,
            rows=share,
            share=float(counts.sum() / (len(a) * len(counts))),
            share_by_position=(counts / len(a)).tolist(),
            largest=None if a.is_discrete else largest,
            decoded_rows=0 if error is None else len(decoded),
            psnr_of_differing=_psnr(error),
            psnr=_psnr(None if error is None else error * share),
            made_with=flat_differences(a.header.made_with, b.header.made_with),
            remarks=remarks,
        )

    def _open(self, context: Context) -> tuple[TokenCache, TokenCache]:
        a, b = open_to_look(self.first, context), open_to_look(self.second, context)
        one, other = a.view(self.view), b.view(self.view)
        if one.shape != other.shape or a.is_discrete != b.is_discrete:
            raise UserError(
                f"the rows differ in shape or type: {one.shape} {one.dtype} in {self.first}, "
                f"{other.shape} {other.dtype} in {self.second}",
                "compare two caches of the same images",
            )
        row = a.keys.first_difference(b.keys)
        if row is not None:
            raise UserError(
                f"row {row} is {a.key(row)} in {self.first} and {b.key(row)} in {self.second}",
                "compare the same images",
            )
        return a, b


def _compare_rows(a: TokenCache, b: TokenCache, view: str, context: Context) -> tuple[np.ndarray, np.ndarray, float]:
    """Return how many rows differ at each position, the rows that differ, and the largest difference."""
    one, other = a.view(view), b.view(view)
    counts, differing, largest = np.zeros(one.shape[1], np.int64), [], 0.0
    context.progress.start("compare", len(a), "rows")
    for begin in range(0, len(a), _ROWS_AT_ONCE):
        left, right = one[begin : begin + _ROWS_AT_ONCE], other[begin : begin + _ROWS_AT_ONCE]
        wrong = left != right
        if not a.is_discrete:
            largest = max(largest, float(np.abs(left.astype(np.float32) - right).max()))
            wrong = wrong.any(axis=2)
        counts += wrong.sum(0)
        differing.append(begin + np.flatnonzero(wrong.any(axis=1)))
        context.progress.advance(len(left))
        context.stop.check()
    context.progress.close()
    return counts, np.concatenate(differing), largest


def _squared_error(
    a: TokenCache, b: TokenCache, view: str, rows: np.ndarray, load: Callable[[], ImageDecoder]
) -> tuple[float | None, list[str]]:
    """Return the mean squared error of the decoded `rows`, in levels of 255, or None and the reasons for it."""
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
    return psnr(error) if error else None
