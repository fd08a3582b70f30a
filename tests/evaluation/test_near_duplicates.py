"""Near-duplicates by ids, against comparing every pair."""

import numpy as np
import pytest

from titokctl.evaluation.near_duplicates import near_pairs


def rows(n: int, seed: int, codes: int = 6, k: int = 8) -> np.ndarray:
    """Rows of few codes, so that many are near each other; some are copies."""
    ids = np.random.default_rng(seed).integers(0, codes, (n, k)).astype(np.uint16)
    ids[n // 2 : n // 2 + n // 5] = ids[: n // 5]
    return ids


@pytest.mark.parametrize("distance", [0, 1, 3, 7])
@pytest.mark.parametrize("cross", [False, True])
def test_every_near_pair_is_found_once(distance: int, cross: bool) -> None:
    a, b = rows(60, 1), rows(45, 2) if cross else None
    found = near_pairs(a, b, distance, keep=10**6)
    apart = (a[:, None] != (a if b is None else b)[None]).sum(2)
    near = apart <= distance
    if not cross:
        near &= np.triu(np.ones_like(near), 1)
    expected = sorted((int(apart[i, j]), int(i), int(j)) for i, j in np.argwhere(near))
    assert found.closest == expected
    assert found.by_distance == np.bincount(apart[near], minlength=distance + 1).tolist()
    both = near if cross else near | near.T
    np.testing.assert_array_equal(found.rows, both.any(1))
    np.testing.assert_array_equal(found.others, both.any(0))


def test_only_the_closest_are_kept() -> None:
    ids = rows(200, 3)
    everything = near_pairs(ids, None, 4, keep=10**6)
    few = near_pairs(ids, None, 4, keep=7)
    assert few.closest == everything.closest[:7]
    assert few.by_distance == everything.by_distance


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="distance"):
        near_pairs(rows(4, 0), None, 8)
    with pytest.raises(ValueError, match="8 ids"):
        near_pairs(rows(4, 0), rows(4, 0, k=9), 2)
