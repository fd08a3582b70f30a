"""Copies of training images are found; fresh images give the expected share."""

import numpy as np
import pytest

from titokctl.evaluation.nearest import closer_than_held_out, nearest_distances


def test_distances_are_the_smallest_over_all_pairs():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((50, 6)), rng.standard_normal((70, 6))
    expected = np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1)).min(1)
    np.testing.assert_allclose(nearest_distances(a, b), expected, rtol=1e-9)


def test_a_copy_is_at_distance_zero_even_far_from_the_origin():
    x = (np.random.default_rng(1).standard_normal((20, 100)) + 50).astype(np.float32)
    assert nearest_distances(x[3:5], x).max() < 1e-4


def test_fresh_samples_give_the_quantile_and_copies_give_everything():
    rng = np.random.default_rng(2)
    training, held_out, fresh = (rng.standard_normal((n, 8)) for n in (500, 1000, 1000))
    for found in closer_than_held_out(fresh, held_out, training):
        assert found.share == pytest.approx(found.quantile, abs=0.06)
    copies = training[rng.integers(0, 500, 200)] + 1e-3 * rng.standard_normal((200, 8))
    assert [found.share for found in closer_than_held_out(copies, held_out, training)] == [1.0, 1.0]


def test_empty_sets_and_other_widths_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        nearest_distances(np.zeros((0, 3)), np.zeros((4, 3)))
    with pytest.raises(ValueError, match="expected features"):
        nearest_distances(np.zeros((2, 3)), np.zeros((4, 2)))
