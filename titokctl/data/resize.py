"""Pillow's bicubic and box resize, bit for bit, with a fixed order of the two passes.

Pillow (Resample.c) resizes in two passes with rounding to bytes between them, and its releases differ in the order of
the passes, which changes pixels of tall images by many levels, and so would change cached ids. Here the horizontal pass
is always the first. Coefficients are Pillow's: double precision, divided by their sum, rounded to multiples of 2^-22; a
pass rounds half up and clips to a byte. Sums are exact, so that the result doesn't depend on the order of summation,
the processor or a matrix library: for the box filter in float64, where such products (8 + 22 bits) add without
rounding; for the bicubic filter in float32 where that is enough.

A float32 product differs from the true sum by rounding errors, which matter only if the sum is that close to the border
between two levels: one value in some thousands. Such values are found by their distance from the border and computed
again in float64, where they are exact. All others have the speed of float32. A pass of the bicubic filter is a band
matrix, cut into small dense ones; colours are planes, so that no product has zeros for other colours.
"""

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

PRECISION_BITS = 22
ONE = 1 << PRECISION_BITS


def _bicubic_weight(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    near = ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _box_weight(x: np.ndarray) -> np.ndarray:
    return ((x > -0.5) & (x <= 0.5)).astype(np.float64)


_FILTERS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float]] = {
    "bicubic": (_bicubic_weight, 2.0),
    "box": (_box_weight, 0.5),
}


def coefficients(source: int, target: int, first: int, count: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Return Pillow's integer coefficients (`precompute_coeffs` and `normalize_coeffs_8bpc` of Resample.c).

    Returns:
        starts (count,) int64: the first input of each output; weights (count, taps) float64 with whole numbers, in
        units of 2^-22, zero where an output has fewer taps.
    """
    function, support = _FILTERS[kind]
    scale = source / target
    stretch = max(scale, 1.0)
    support *= stretch
    center = (np.arange(first, first + count) + 0.5) * scale
    starts = np.maximum((center - support + 0.5).astype(np.int64), 0)
    ends = np.minimum((center + support + 0.5).astype(np.int64), source)
    taps = int((ends - starts).max())
    at = np.arange(taps) + starts[:, None]
    weights = function((at - center[:, None] + 0.5) * (1.0 / stretch))
    weights[at >= ends[:, None]] = 0.0
    # Added one by one, as in a loop: another order would change the last bit of some sums.
    total = np.zeros(count)
    for column in weights.T:
        total += column
    weights /= np.where(total == 0.0, 1.0, total)[:, None]
    whole = weights * ONE
    return starts, np.trunc(np.where(whole < 0, whole - 0.5, whole + 0.5))


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


_BLOCK = 8  # outputs of one small matrix product: more would multiply by more zeros, fewer would be slow
_MAX_COLUMNS = 1536  # columns per product, so that a block's inputs stay in the second-level cache


@dataclass(frozen=True)
class _Block:
    """Outputs `first` to `first + len(weights)` are weights (n, span) @ inputs[start : start + span]."""

    first: int
    start: int
    weights: np.ndarray


def resize(
    pixels: np.ndarray,
    size: tuple[int, int],
    window: tuple[int, int, int, int] | None = None,
    kind: str = "bicubic",
) -> np.ndarray:
    """Scale `pixels` (H, W, C) uint8 to `size` (h, w), or compute only the part `window` of it.

    Args:
        pixels: (H, W, C) uint8, any strides; planes (a view of a contiguous (C, H, W)) are fastest.
        size: height and width of the whole result.
        window: (top, left, height, width) within the whole result; the rest is never computed.
        kind: "bicubic" or "box"; both with antialias, as Pillow's.

    Returns:
        (height, width, C) uint8; with the bicubic filter a view of contiguous planes (C, height, width).

    Raises:
        ValueError: a size is below 1, or the window is not inside the result.
    """
    height, width = size
    top, left, rows, columns = window or (0, 0, height, width)
    if min(height, width, rows, columns) < 1 or top < 0 or left < 0 or top + rows > height or left + columns > width:
        raise ValueError(f"the window {window} is not inside a result of {size} (height, width)")
    if kind == "bicubic":
        return _bicubic(pixels, size, (top, left, rows, columns))
    used, vertical = slice(top, top + rows), None
    if height != pixels.shape[0]:
        vertical = _blocks(pixels.shape[0], height, top, rows, kind)
        used = slice(*_span(vertical))
    across = _across(pixels[used], width, left, columns, kind)
    down = across if vertical is None else _apply(across, vertical, used.start, rows)
    return np.ascontiguousarray(down.transpose(0, 2, 1))


def _bicubic(pixels: np.ndarray, size: tuple[int, int], window: tuple[int, int, int, int]) -> np.ndarray:
    """Resize as `resize` does, with both passes in float32."""
    top, left, rows, columns = window
    down = down_pass(pixels.shape[0], size[0], top, rows) if size[0] != pixels.shape[0] else None
    used = pixels[top : top + rows] if down is None else pixels[down.first : down.first + down.used]
    planes = used.transpose(2, 0, 1)
    if size[1] == pixels.shape[1]:
        across = planes[:, :, left : left + columns].transpose(1, 0, 2).astype(np.float32, order="C")
    else:
        across = run_across(across_pass(pixels.shape[1], size[1], left, columns), planes)
    result = across if down is None else run_down(down, across.reshape(len(across), -1))
    lines = result.astype(np.uint8).reshape(rows, -1, columns)
    return np.ascontiguousarray(lines.transpose(1, 0, 2)).transpose(1, 2, 0)


# Between the passes an image is (H, C, W) or (W, C, H): copies between these layouts have long inner loops, while
# copies of (H, W, C) pixels, three bytes at a time, would cost as much as the arithmetic.
def _across(pixels: np.ndarray, width: int, left: int, columns: int, kind: str) -> np.ndarray:
    """Run the horizontal pass: (H, W, C) -> (H, C, columns) uint8."""
    if width == pixels.shape[1]:
        return np.ascontiguousarray(pixels[:, left : left + columns].transpose(0, 2, 1))
    blocks = _blocks(pixels.shape[1], width, left, columns, kind)
    first, end = _span(blocks)
    turned = np.ascontiguousarray(pixels[:, first:end].transpose(1, 2, 0))
    return np.ascontiguousarray(_apply(turned, blocks, first, columns).transpose(2, 1, 0))


def _apply(inputs: np.ndarray, blocks: tuple[_Block, ...], offset: int, count: int) -> np.ndarray:
    """Run a pass along the first axis: (n, C, M) uint8, the inputs from `offset` on -> (count, C, M) uint8."""
    flat = inputs.reshape(len(inputs), -1)
    columns = flat.shape[1]
    result = np.empty((count, columns), np.uint8)
    for c in range(0, columns, _MAX_COLUMNS):
        part = flat[:, c : c + _MAX_COLUMNS]
        for block in blocks:
            start, (n, span) = block.start - offset, block.weights.shape
            sums = block.weights @ part[start : start + span].astype(np.float64)
            sums += 0.5
            np.clip(sums, 0.0, 255.5, out=sums)
            # Casting truncates, which rounds half up, as the integer shift in Pillow does.
            result[block.first : block.first + n, c : c + _MAX_COLUMNS] = sums
    return result.reshape(count, *inputs.shape[1:])


def _span(blocks: tuple[_Block, ...]) -> tuple[int, int]:
    return min(b.start for b in blocks), max(b.start + b.weights.shape[1] for b in blocks)


@lru_cache(maxsize=512)
def _blocks(source: int, target: int, first: int, count: int, kind: str) -> tuple[_Block, ...]:
    """Return small matrices of weights for outputs `first` to `first + count` of a resize from `source` to `target`."""
    starts, weights = coefficients(source, target, first, count, kind)
    taps = weights.shape[1]
    blocks = []
    for i in range(0, count, _BLOCK):
        s = starts[i : i + _BLOCK]
        begin = int(s.min())
        span = min(int(s.max()) + taps, source) - begin
        matrix = np.zeros((len(s), span + taps))
        for row, (start, w) in enumerate(zip(s, weights[i : i + _BLOCK], strict=True)):
            matrix[row, start - begin : start - begin + taps] = w
        # Only zeros are removed: taps beyond the last input have no weight.
        blocks.append(_Block(i, begin, np.ascontiguousarray(matrix[:, :span]) / ONE))
    return tuple(blocks)
