"""The coefficients of Pillow's bicubic and box filters, as whole numbers."""

from collections.abc import Callable

import numpy as np

PRECISION_BITS = 22
ONE = 1 << PRECISION_BITS


def _bicubic(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    near = ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _box(x: np.ndarray) -> np.ndarray:
    return ((x > -0.5) & (x <= 0.5)).astype(np.float64)


_FILTERS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float]] = {"bicubic": (_bicubic, 2.0), "box": (_box, 0.5)}


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
