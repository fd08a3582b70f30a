"""The two passes of the bicubic resize as float32 matrix products, exact to the bit.

A float32 product misses the true sum by its rounding errors, which matter only where the sum lies that close to the
border between two levels: one value in some thousands. Those are found by their distance from the border and computed
again in float64, where they are exact. Everything else is as fast as float32 is.

A pass is a band matrix, cut into small dense ones. Pixels stay interleaved: the horizontal matrices are spread over the
channels (C times the multiplications), which costs less than moving bytes to planes and back.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from titokctl.data.resize_coefficients import ONE, coefficients

_ROUNDING = 2.0**-24  # of one float32 operation, relative
_ACROSS, _DOWN = 5, 8  # outputs of one small product
_AT_ONCE = 1 << 21  # values of an image that are held as float32 at once
_AGAIN_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class Pass:
    """Output j is weights[j] @ inputs[starts[j] : starts[j] + taps] / 2^22, rounded half up and clipped to a byte.

    Inputs are counted from `first`, the first of the `used` ones that matter. starts (n,) int64; weights (n, taps)
    float64 holding whole numbers. `blocks` are (first output, first input) of the small products with `matrices`, which
    may overlap; `margin` is how far a float32 sum may be from the true one.
    """

    first: int
    used: int
    starts: np.ndarray
    weights: np.ndarray
    blocks: tuple[tuple[int, int], ...]
    matrices: np.ndarray
    margin: float


@lru_cache(maxsize=256)
def across_pass(source: int, target: int, first: int, count: int, channels: int) -> Pass:
    """The horizontal pass to outputs `first` to `first + count`; matrices (m, span C, n C)."""
    plan = _plan(source, target, first, count, _ACROSS)
    m, span, n = plan.matrices.shape
    spread = np.zeros((m, span, channels, n, channels), np.float32)
    for c in range(channels):
        spread[:, :, c, :, c] = plan.matrices
    return replace(plan, matrices=spread.reshape(m, span * channels, n * channels))


@lru_cache(maxsize=256)
def down_pass(source: int, target: int, first: int, count: int) -> Pass:
    """The vertical pass to outputs `first` to `first + count`; matrices (m, n, span)."""
    plan = _plan(source, target, first, count, _DOWN)
    return replace(plan, matrices=np.ascontiguousarray(plan.matrices.transpose(0, 2, 1)))


def run_across(plan: Pass, pixels: np.ndarray) -> np.ndarray:
    """(H, W, C) uint8 with all columns -> (H, n C) float32 holding whole numbers from 0 to 255."""
    height, _, channels = pixels.shape
    rows = pixels[:, plan.first : plan.first + plan.used].reshape(height, -1)
    result = np.empty((height, len(plan.starts) * channels), np.float32)
    span, n = plan.matrices.shape[1:]
    step = max(1, _AT_ONCE // rows.shape[1])
    for top in range(0, height, step):
        part = rows[top : top + step].astype(np.float32)
        sums = result[top : top + step]
        for (output, start), matrix in zip(plan.blocks, plan.matrices, strict=True):
            begin, at = start * channels, output * channels
            np.matmul(part[:, begin : begin + span], matrix, out=sums[:, at : at + n])

        def again(places: np.ndarray, part: np.ndarray = part) -> np.ndarray:
            row, column = np.divmod(places, result.shape[1])
            output, channel = np.divmod(column, channels)
            inputs = np.minimum(plan.starts[output, None] + np.arange(plan.weights.shape[1]), plan.used - 1)
            return _exact(part[row[:, None], inputs * channels + channel[:, None]], plan.weights[output])

        _round(sums, plan.margin, again)
    return result


def run_down(plan: Pass, rows: np.ndarray) -> np.ndarray:
    """(used, M) float32 whole numbers, from input `plan.first` on -> (n, M) float32 likewise."""
    result = np.empty((len(plan.starts), rows.shape[1]), np.float32)
    n, span = plan.matrices.shape[1:]
    for (output, start), matrix in zip(plan.blocks, plan.matrices, strict=True):
        np.matmul(matrix, rows[start : start + span], out=result[output : output + n])

    def again(places: np.ndarray) -> np.ndarray:
        output, column = np.divmod(places, result.shape[1])
        inputs = np.minimum(plan.starts[output, None] + np.arange(plan.weights.shape[1]), plan.used - 1)
        return _exact(rows[inputs, column[:, None]], plan.weights[output])

    _round(result, plan.margin, again)
    return result


def _round(sums: np.ndarray, margin: float, again: Callable[[np.ndarray], np.ndarray]) -> None:
    """Round `sums` to bytes in place; `again` gives the exact values at flat places that are too close to call."""
    nearest = np.rint(sums)
    np.subtract(sums, nearest, out=sums)
    np.abs(sums, out=sums)
    close = np.flatnonzero(sums > 0.5 - margin)
    np.clip(nearest, 0.0, 255.0, out=sums)
    for i in range(0, len(close), _AGAIN_AT_ONCE):
        places = close[i : i + _AGAIN_AT_ONCE]
        sums[np.divmod(places, sums.shape[1])] = again(places)


def _exact(inputs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(k, taps) bytes and weights -> (k,) bytes; float64 holds every sum of such products exactly."""
    sums = (inputs * weights).sum(axis=1)
    return np.clip(np.floor((sums + ONE // 2) / ONE), 0.0, 255.0)


def _plan(source: int, target: int, first: int, count: int, per_block: int) -> Pass:
    """The pass with matrices (m, span, n) float32."""
    starts, weights = coefficients(source, target, first, count, "bicubic")
    taps = weights.shape[1]
    begin, end = int(starts.min()), min(int(starts.max()) + taps, source)
    starts = starts - begin
    n = min(per_block, count)
    outputs = np.minimum(np.arange(0, count, n), count - n)
    members = outputs[:, None] + np.arange(n)  # (m, n)
    span = min(int((starts[members].max(axis=1) - starts[members].min(axis=1)).max()) + taps, end - begin)
    inputs = np.minimum(starts[members].min(axis=1), end - begin - span)  # (m,)
    # Rows beyond the last input are cut off again: their weights are zero.
    matrices = np.zeros((len(outputs), span + taps, n), np.float32)
    rows = (starts[members] - inputs[:, None])[..., None] + np.arange(taps)  # (m, n, taps)
    m, j = np.arange(len(outputs))[:, None, None], np.arange(n)[None, :, None]
    matrices[m, rows, j] = weights[members] / ONE  # 23 bits: exact in float32
    largest = 255.0 * float(np.abs(weights).sum(axis=1).max()) / ONE
    # One rounding a product and one an addition; adding zeros is exact, so the order of summation does not matter.
    margin = (taps + 2) * _ROUNDING * largest
    blocks = tuple(zip(outputs.tolist(), inputs.tolist(), strict=True))
    return Pass(begin, end - begin, starts, weights, blocks, np.ascontiguousarray(matrices[:, :span]), margin)
