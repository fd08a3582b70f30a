"""Rows of ids that differ in few positions: images that are nearly the same.

Rows that differ in at most d of K positions agree in at least one whole band when the positions are cut into d + 1
bands. So rows are sorted by each band in turn and only neighbours in that order are compared, instead of all pairs; no
pair within d is missed. Letters: N rows, K latent tokens.
"""

import heapq
from dataclasses import dataclass, field

import numpy as np

_PAIRS_AT_ONCE = 1 << 18


@dataclass
class NearPairs:
    """Pairs of rows within a distance.

    `closest` holds (distance, row, other row), the closest first; `by_distance[d]` counts all pairs; `rows` (N,) and
    `others` (M,) bool tell which rows have any.
    """

    by_distance: list[int]
    rows: np.ndarray
    others: np.ndarray
    closest: list[tuple[int, int, int]] = field(default_factory=list)


def near_pairs(ids: np.ndarray, others: np.ndarray | None = None, max_distance: int = 4, keep: int = 100) -> NearPairs:
    """Pairs of a row of `ids` (N, K) and one of `others` (M, K) that differ in at most `max_distance` positions.

    Without `others` pairs within `ids`, each once. Of the pairs themselves the `keep` closest are returned.

    Raises ValueError when K differs or `max_distance` is not below K.
    """
    k = ids.shape[1]
    if others is not None and others.shape[1] != k:
        raise ValueError(f"expected rows of {k} ids, got {others.shape[1]}")
    if not 0 <= max_distance < k:
        raise ValueError(f"expected a distance from 0 to {k - 1}, got {max_distance}")
    n = len(ids)
    every = np.asarray(ids) if others is None else np.concatenate([np.asarray(ids), np.asarray(others)])
    edges = np.linspace(0, k, max_distance + 2).astype(int)
    search = _Search(every, n, others is not None, edges, keep)
    for band in range(max_distance + 1):
        search.band(band)
    return search.found


class _Search:
    """Pairs that the bands found so far."""

    def __init__(self, every: np.ndarray, n: int, is_cross: bool, edges: np.ndarray, keep: int) -> None:
        self._every, self._n, self._is_cross, self._edges, self._keep = every, n, is_cross, edges, keep
        others = len(every) - n if is_cross else n
        self.found = NearPairs([0] * (len(edges) - 1), np.zeros(n, bool), np.zeros(others, bool))

    def band(self, band: int) -> None:
        """Compare all rows that agree in one band."""
        hashes = _hashes(self._every[:, self._edges[band] : self._edges[band + 1]])
        order = np.argsort(hashes, kind="stable")
        hashes = hashes[order]
        at, offset = np.arange(len(order)), 1
        while True:
            at = at[at + offset < len(order)]
            at = at[hashes[at] == hashes[at + offset]]
            if not len(at):
                break
            for first in range(0, len(at), _PAIRS_AT_ONCE):
                block = at[first : first + _PAIRS_AT_ONCE]
                self._compare(band, order[block], order[block + offset])
            offset += 1
        self.found.closest.sort()

    def _compare(self, band: int, left: np.ndarray, right: np.ndarray) -> None:
        left, right = np.minimum(left, right), np.maximum(left, right)
        if self._is_cross:
            crossing = (left < self._n) & (right >= self._n)
            left, right = left[crossing], right[crossing]
        differs = self._every[left] != self._every[right]
        distance = differs.sum(1)
        near = distance < len(self._edges) - 1
        for earlier in range(band):  # each pair is counted in the first band in which it agrees
            near &= differs[:, self._edges[earlier] : self._edges[earlier + 1]].any(1)
        near &= ~differs[:, self._edges[band] : self._edges[band + 1]].any(1)
        self._take(distance[near], left[near], right[near] - (self._n if self._is_cross else 0))

    def _take(self, distance: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
        found = self.found
        for d, count in enumerate(np.bincount(distance, minlength=len(found.by_distance)).tolist()):
            found.by_distance[d] += count
        found.rows[left] = True
        found.others[right] = True
        if not self._is_cross:
            found.rows[right] = found.others[left] = True
        order = np.lexsort((right, left, distance))[: self._keep]
        new = zip(distance[order].tolist(), left[order].tolist(), right[order].tolist(), strict=True)
        found.closest = heapq.nsmallest(self._keep, [*found.closest, *new])


def _hashes(ids: np.ndarray) -> np.ndarray:
    """(n,) uint64 of rows; equal rows have equal ones, and what collides is compared anyway."""
    total = np.zeros(len(ids), np.uint64)
    for column in ids.T:
        total = (total ^ column.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        total ^= total >> np.uint64(29)
    return total
