"""Pillow's bicubic and box resize, bit for bit, with a fixed order of the two passes.

Pillow (Resample.c) resizes in two passes with rounding to bytes between them, and its releases differ in the order of
the passes, which changes pixels of tall images by many levels, and so would change cached ids. Here the horizontal pass
is always the first. Coefficients are Pillow's: double precision, divided by their sum, rounded to multiples of 2^-22; a
pass rounds half up and clips to a byte. Sums are exact, so that the result doesn't depend on the order of summation,
the processor or a matrix library: for the box filter in float64, where such products (8 + 22 bits) add without
rounding; for the bicubic filter in float32 where that is enough (`bicubic_passes`).
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from titokctl.data.bicubic_passes import across_pass, down_pass, run_across, run_down
from titokctl.data.resize_coefficients import ONE, coefficients

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
