"""KID against a version with explicit loops over pairs, and its statistical promise."""

import numpy as np
import pytest

from titokctl.evaluation.metrics import kernel_distance, kernel_distance_in_subsets


def by_pairs(x: np.ndarray, y: np.ndarray) -> float:
    def kernel(a, b):
        return (sum(p * q for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3

    n, m = len(x), len(y)
    xx = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return xx + yy - 2 * sum(kernel(a, b) for a in x for b in y) / (n * m)


def test_agrees_with_the_sum_over_pairs():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((23, 7)), rng.standard_normal((31, 7)) * 1.3 + 0.2
    assert kernel_distance(x, y) == pytest.approx(by_pairs(x, y), rel=1e-9)


def test_subsets_follow_the_seed_and_average_to_the_whole():
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((400, 5)).astype(np.float32), rng.standard_normal((300, 5)).astype(np.float32) + 0.5
    first = kernel_distance_in_subsets(x, y, subsets=60, subset_size=100, seed=3)
    again = kernel_distance_in_subsets(x, y, subsets=60, subset_size=100, seed=3)
    other = kernel_distance_in_subsets(x, y, subsets=60, subset_size=100, seed=4)
    assert first == again
    assert first[0] != other[0]
    assert first[0] == pytest.approx(kernel_distance(x, y), abs=4 * first[1] / 60**0.5)


def test_a_subset_draws_from_both_sets_what_numpy_would():
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((40, 3)), rng.standard_normal((60, 3))
    found, deviation = kernel_distance_in_subsets(x, y, subsets=1, subset_size=10, seed=5)
    draw = np.random.Generator(np.random.PCG64([5, 0]))
    a, b = draw.choice(40, 10, replace=False), draw.choice(60, 10, replace=False)
    assert found == pytest.approx(by_pairs(x[a], y[b]), rel=1e-9)
    assert deviation == 0


def test_when_every_subset_is_the_whole_set_it_is_taken_once():
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((20, 3)), rng.standard_normal((20, 3))
    assert kernel_distance_in_subsets(x, y) == (kernel_distance(x, y), 0)


def test_is_unbiased_for_equal_distributions():
    rng = np.random.default_rng(4)
    values = [kernel_distance(rng.standard_normal((30, 4)), rng.standard_normal((30, 4))) for _ in range(300)]
    assert abs(np.mean(values)) < 4 * np.std(values) / 300**0.5
    assert min(values) < 0


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="at least 2 images"):
        kernel_distance(np.zeros((1, 3)), np.zeros((5, 3)))
    with pytest.raises(ValueError, match="expected features"):
        kernel_distance(np.zeros((4, 3)), np.zeros((5, 2)))
