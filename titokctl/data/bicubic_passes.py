"""The two passes of the bicubic resize as float32 matrix products, exact to the bit.

A float32 product differs from the true sum by rounding errors, which matter only if the sum is that close to the border
between two levels: one value in some thousands. Such values are found by their distance from the border and computed
again in float64, where they are exact. All others have the speed of float32.

A pass is a band matrix, cut into small dense ones; colours are planes, so that no product has zeros for other colours.
"""

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from titokctl.data.resize_coefficients import ONE, coefficients

_ROUNDING = 2.0**-24  # of one float32 operation, relative
_ACROSS, _DOWN = (
    16,
    8,
)  # outputs of one small product: the width of a processor's registers; fewer where that costs nothing
_AT_ONCE = 1 << 21  # values of an image that are converted to float32 at once
_AGAIN_AT_ONCE = 1 << 16
_KEPT = 1 << 21  # values of an array that a thread keeps for its next image
_kept = threading.local()


@dataclass(frozen=True)
class Pass:
    """Output j is weights[j] @ the inputs[j] / 2^22, rounded half up and clipped to a byte.

    Args:
        first, used: the pass needs inputs `first` to `first + used`; the inputs below count from `first`.
        inputs: (n, taps) int64, the inputs of each output.
        weights: (n, taps) float64 with whole numbers, zero where an input is repeated.
        blocks: (first output, first input) of each small product; blocks may overlap.
        matrices: the matrix of each block.
        margin: largest difference between a float32 sum and the true one.
    """

    first: int
    used: int
    inputs: np.ndarray
    weights: np.ndarray
    blocks: tuple[tuple[int, int], ...]
    matrices: np.ndarray
    margin: float


@lru_cache(maxsize=256)
def across_pass(source: int, target: int, first: int, count: int) -> Pass:
    """Return the horizontal pass to outputs `first` to `first + count`; matrices (m, span, n)."""
    return _plan(source, target, first, count, _ACROSS)


@lru_cache(maxsize=256)
def down_pass(source: int, target: int, first: int, count: int) -> Pass:
    """Return the vertical pass to outputs `first` to `first + count`; matrices (m, n, span)."""
    plan = _plan(source, target, first, count, _DOWN)
    return replace(plan, matrices=np.ascontiguousarray(plan.matrices.transpose(0, 2, 1)))


def run_across(plan: Pass, planes: np.ndarray) -> np.ndarray:
    """Run a horizontal pass: (C, H, W) uint8 with all columns -> (H, C, n) float32 with whole numbers from 0 to 255.

    The thread's next image overwrites the result of both passes.
    """
    channels, height, _ = planes.shape
    lines = planes[:, :, plan.first : plan.first + plan.used].transpose(1, 0, 2)  # (H, C, used)
    result = _scratch("across", (height * channels, len(plan.weights)))
    span, n = plan.matrices.shape[1:]
    step = max(1, _AT_ONCE // (channels * plan.used))
    for top in range(0, height, step):
        pixels = lines[top : top + step]
        part = _scratch("part", pixels.shape)
        part[...] = pixels
        part = part.reshape(-1, plan.used)
        sums = result[top * channels : (top + step) * channels]
        for (output, start), matrix in zip(plan.blocks, plan.matrices, strict=True):
            np.matmul(part[:, start : start + span], matrix, out=sums[:, output : output + n])

        def again(indices: np.ndarray, part: np.ndarray = part) -> np.ndarray:
            line, output = np.divmod(indices, len(plan.weights))
            return _exact(part[line[:, None], plan.inputs[output]], plan.weights[output])

        _round(sums, plan.margin, again)
    return result.reshape(height, channels, -1)


def run_down(plan: Pass, rows: np.ndarray) -> np.ndarray:
    """Run a vertical pass: (used, M) float32 whole numbers, from input `plan.first` on -> (n, M) float32."""
    result = _scratch("down", (len(plan.weights), rows.shape[1]))
    n, span = plan.matrices.shape[1:]
    for (output, start), matrix in zip(plan.blocks, plan.matrices, strict=True):
        np.matmul(matrix, rows[start : start + span], out=result[output : output + n])

    def again(indices: np.ndarray) -> np.ndarray:
        output, column = np.divmod(indices, result.shape[1])
        return _exact(rows[plan.inputs[output], column[:, None]], plan.weights[output])

    _round(result, plan.margin, again)
    return result


def _round(sums: np.ndarray, margin: float, again: Callable[[np.ndarray], np.ndarray]) -> None:
    """Round contiguous `sums` to bytes in place; `again` computes exact values at flat indices near a border."""
    nearest = np.rint(sums, out=_scratch("nearest", sums.shape))
    np.subtract(sums, nearest, out=sums)
    np.abs(sums, out=sums)
    close = np.flatnonzero(np.greater(sums, 0.5 - margin, out=_scratch("close", sums.shape, np.bool_)))
    np.clip(nearest, 0.0, 255.0, out=sums)
    flat = sums.reshape(-1)
    for i in range(0, len(close), _AGAIN_AT_ONCE):
        indices = close[i : i + _AGAIN_AT_ONCE]
        flat[indices] = again(indices)


def _exact(inputs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(k, taps) bytes and weights -> (k,) bytes; such sums are exact in float64."""
    sums = np.einsum("ij,ij->i", inputs, weights)
    return np.minimum(np.maximum(np.floor((sums + ONE // 2) / ONE), 0.0), 255.0)


def _scratch(name: str, shape: tuple[int, ...], dtype: type = np.float32) -> np.ndarray:
    """Return an uninitialised array that this thread reuses: new memory would cost as much as the arithmetic."""
    size = math.prod(shape)
    if size > _KEPT:
        return np.empty(shape, dtype)
    array: np.ndarray | None = getattr(_kept, name, None)
    if array is None or array.size < size:
        array = np.empty(size, dtype)
        setattr(_kept, name, array)
    return array[:size].reshape(shape)


def _plan(source: int, target: int, first: int, count: int, per_block: int) -> Pass:
    """Return the pass with matrices (m, span, n) float32."""
    starts, weights = coefficients(source, target, first, count, "bicubic")
    taps = weights.shape[1]
    begin, end = int(starts.min()), min(int(starts.max()) + taps, source)
    starts = starts - begin
    n = min(per_block, count)
    outputs = np.minimum(np.arange(0, count, n), count - n)
    members = outputs[:, None] + np.arange(n)  # (m, n)
    span = min(int((starts[members].max(axis=1) - starts[members].min(axis=1)).max()) + taps, end - begin)
    inputs = np.minimum(starts[members].min(axis=1), end - begin - span)  # (m,)
    # Rows beyond the last input have zero weights and are removed below.
    matrices = np.zeros((len(outputs), span + taps, n), np.float32)
    rows = (starts[members] - inputs[:, None])[..., None] + np.arange(taps)  # (m, n, taps)
    m, j = np.arange(len(outputs))[:, None, None], np.arange(n)[None, :, None]
    matrices[m, rows, j] = weights[members] / ONE  # 23 bits: exact in float32
    largest = 255.0 * float(np.abs(weights).sum(axis=1).max()) / ONE
    # One rounding per product and one per addition. Adding zeros is exact, so the order of summation doesn't matter.
    margin = (taps + 2) * _ROUNDING * largest
    blocks = tuple(zip(outputs.tolist(), inputs.tolist(), strict=True))
    each = np.minimum(starts[:, None] + np.arange(taps), end - begin - 1)
    return Pass(begin, end - begin, each, weights, blocks, np.ascontiguousarray(matrices[:, :span]), margin)
