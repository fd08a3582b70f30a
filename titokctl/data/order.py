"""The order of samples, computed from (seed, epoch, position) and never from earlier draws.

A resumed run, or one with another number of processes, sees the same samples in the same order without replay. Random
bits come from Philox and from a hash of 64-bit integers; both are fixed, while NumPy's higher-level functions
(`permutation`, `shuffle`) may change between versions.
"""

from functools import lru_cache

import numpy as np

_MASK = (1 << 64) - 1
_ORDER = 1  # start of Philox's counter, so that no other use of (seed, epoch) draws the same bits
_SPREAD = 0x5B9EAD  # use of `uniform` by `spread_positions`
_U64 = np.uint64
_MOST_SORTED = 1 << 24  # above this, storing an epoch's order takes seconds and gigabytes in every process
_ROUNDS = 6


def batch_positions(seed: int, step: int, global_batch_size: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the global batch of `step` (from 0) over `count` samples.

    A batch may span two epochs: every epoch has each sample exactly once, whatever the batch size.

    Returns:
        epochs and positions, both (global_batch_size,) int64.

    Raises:
        ValueError: a count or batch size is below 1, or the step is negative.
    """
    if count < 1 or global_batch_size < 1 or step < 0:
        raise ValueError(f"no batch {step} of {global_batch_size} from {count} samples")
    drawn = np.arange(step * global_batch_size, (step + 1) * global_batch_size, dtype=np.int64)
    epochs, ranks = np.divmod(drawn, count)
    positions = np.empty_like(drawn)
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        here = epochs == epoch
        if count > _MOST_SORTED:
            positions[here] = scattered(seed, epoch, count, ranks[here])
        else:
            positions[here] = epoch_order(seed, epoch, count)[ranks[here]]
    return epochs, positions


@lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """Return the permutation of samples in epoch `epoch`, (count,) int64, read-only."""
    key, counter = np.array([seed & _MASK, epoch], _U64), np.array([0, 0, 0, _ORDER], _U64)
    bits = np.random.Philox(key=key, counter=counter).random_raw(count)
    order = np.argsort(bits, kind="stable")
    order.setflags(write=False)
    return order


def scattered(seed: int, epoch: int, count: int, ranks: np.ndarray) -> np.ndarray:
    """Return the samples, (n,) int64, at `ranks` (n,) of an epoch's order of `count` samples, which is never stored.

    A Feistel network permutes the next even power of two; it is applied again to results that are not below `count`.
    """
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    keys = [_mix(_mix(np.array(seed & _MASK, _U64)) ^ _mix(np.array((epoch << 8) | r, _U64))) for r in range(_ROUNDS)]
    found = np.array(ranks, _U64)
    moving = np.arange(len(found))
    while len(moving):
        found[moving] = _feistel(found[moving], keys, half)
        moving = moving[found[moving] >= _U64(count)]
    return found.astype(np.int64)


def _feistel(x: np.ndarray, keys: list[np.ndarray], half: int) -> np.ndarray:
    left, right = x >> _U64(half), x & _U64((1 << half) - 1)
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) >> _U64(64 - half))
    return (left << _U64(half)) | right


def uniform(seed: int, what: int, epochs: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Return (n,) float64 in [0, 1): one number per (seed, what, epoch, position), the same on every machine.

    `what` distinguishes uses. The hash is the finalizer of SplitMix64, once per key.
    """
    state = np.full(np.shape(positions), seed & _MASK, _U64)
    for key in (np.asarray(what), np.asarray(epochs), np.asarray(positions)):
        state = _mix(state ^ _mix(key.astype(_U64)))
    return (state >> _U64(11)) * 2.0**-53


def spread_positions(total: int, count: int) -> np.ndarray:
    """Return up to `count` positions below `total`, one at a random place in each of `count` equal stretches.

    Evenly spaced positions would meet only some classes of a set whose classes take turns. The same for equal
    arguments; sorted, (min(count, total),) int64.
    """
    count = min(count, total)
    edges = np.arange(count + 1) * total // max(count, 1)
    drawn = uniform(0, _SPREAD, np.zeros(count, np.int64), np.arange(count))
    return edges[:-1] + (drawn * np.diff(edges)).astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # multiplication modulo 2^64 is intended
        x = x + _U64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> _U64(27))) * _U64(0x94D049BB133111EB)
        return x ^ (x >> _U64(31))
