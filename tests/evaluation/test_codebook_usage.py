"""Codebook usage against what can be said without computing."""

import numpy as np
import pytest

from titokctl.evaluation.codebook_usage import count_codes, usage_of


def test_perplexity_counts_equally_likely_codes() -> None:
    even = usage_of(np.array([5, 5, 5, 5, 0, 0, 0, 0]))
    assert (even.used, even.size, even.share) == (4, 8, 0.5)
    assert even.perplexity == pytest.approx(4)
    assert usage_of(np.array([0, 9])).perplexity == pytest.approx(1)
    assert usage_of(np.zeros(3, np.int64)).perplexity == 0


def test_positions_are_counted_apart() -> None:
    counts = count_codes(np.array([[0, 3], [1, 3], [0, 3], [1, 3]], np.uint16), 4)
    assert [usage_of(row).used for row in counts] == [2, 1]
    assert [usage_of(row).perplexity for row in counts] == pytest.approx([2, 1])
    assert usage_of(counts.sum(0)).perplexity == pytest.approx(np.exp(1.5 * np.log(2)))


def test_blocks_add_up() -> None:
    ids = np.random.default_rng(0).integers(0, 7, (3_000_000, 2)).astype(np.uint16)
    counts = count_codes(ids, 7)
    assert counts.sum(1).tolist() == [3_000_000, 3_000_000]
    np.testing.assert_array_equal(counts[1], np.bincount(ids[:, 1]))


def test_a_table_of_counts_too_large_is_refused() -> None:
    with pytest.raises(ValueError, match="at most"):
        count_codes(np.zeros((1, 32), np.uint32), 1 << 30)
