"""The standard error of the Fréchet distance is the deviation that repeated drawing shows."""

import numpy as np
import pytest

from titokctl.evaluation.frechet import (
    Gaussian,
    frechet_distance,
    frechet_standard_error,
    gaussian_of,
    influences,
    paired_test,
)


def test_agrees_with_repeated_drawing():
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((6, 6)) / 2
    reference = Gaussian(np.full(6, 0.4), np.diag(np.linspace(0.5, 2, 6)))
    distances, errors = [], []
    for _ in range(300):
        x = rng.standard_normal((400, 6)) @ mixing
        samples = gaussian_of(x)
        distances.append(frechet_distance(samples, reference))
        errors.append(frechet_standard_error(x, samples, reference))
    assert np.mean(errors) == pytest.approx(np.std(distances), rel=0.15)


def test_too_few_images_have_none():
    x = np.random.default_rng(1).standard_normal((11, 6))
    g = gaussian_of(x)
    assert frechet_standard_error(x, g, g) is None


def test_pairs_are_tested_as_often_positive_as_promised():
    """Equal sets that share half of each image: 5 % of the tests are positive, and the error is the deviation."""
    rng = np.random.default_rng(2)
    reference = Gaussian(np.full(4, 0.5), np.diag(np.linspace(0.5, 1.5, 4)))
    tests = []
    for _ in range(300):
        shared = rng.standard_normal((300, 4))
        pair = [shared + 0.5 * rng.standard_normal((300, 4)) for _ in range(2)]
        gaussians = [gaussian_of(x) for x in pair]
        distances = [frechet_distance(g, reference) for g in gaussians]
        moves = [influences(x, g, reference) for x, g in zip(pair, gaussians, strict=True)]
        tests.append(paired_test(*distances, *moves))
    assert np.mean([t.standard_error for t in tests]) == pytest.approx(np.std([t.difference for t in tests]), rel=0.15)
    assert 0.01 < np.mean([t.p < 0.05 for t in tests]) < 0.1
    alone = np.mean([np.hypot(*(m.std() / 300**0.5 for m in moves))])
    assert tests[-1].standard_error < 0.8 * alone


def test_equal_sets_are_not_told_apart():
    x = np.random.default_rng(3).standard_normal((50, 3))
    g, reference = gaussian_of(x), Gaussian(np.zeros(3), np.eye(3))
    moves = influences(x, g, reference)
    found = paired_test(1.5, 1.5, moves, moves)
    assert (found.difference, found.standard_error, found.p) == (0, 0, 1)
