"""Precision and recall against a version with all pairs in numpy, and by construction."""

import numpy as np
import pytest

from titokctl.evaluation.metrics import precision_recall


def by_numpy(samples: np.ndarray, reference: np.ndarray, k: int) -> tuple[float, float]:
    def distances(a, b):
        return np.sqrt(((a[:, None].astype(float) - b[None].astype(float)) ** 2).sum(-1))

    radius_s = np.sort(distances(samples, samples), 1)[:, k]
    radius_r = np.sort(distances(reference, reference), 1)[:, k]
    between = distances(samples, reference)
    return float((between <= radius_r).any(1).mean()), float((between <= radius_s[:, None]).any(0).mean())


@pytest.mark.parametrize("block", [1 << 24, 500])
def test_agrees_with_all_pairs_in_numpy(block):
    rng = np.random.default_rng(0)
    samples = (rng.standard_normal((130, 5)) * 0.8 + 40).astype(np.float32)
    reference = (rng.standard_normal((90, 5)) + 40.3).astype(np.float32)
    found = precision_recall(samples, reference, at_once=block)
    expected = by_numpy(samples, reference, 3)
    assert found == pytest.approx(expected, abs=1e-6)
    assert 0 < found[1] < found[0]


def test_a_collapsed_set_is_precise_and_recalls_little():
    rng = np.random.default_rng(1)
    reference = rng.standard_normal((300, 4)).astype(np.float32)
    collapsed = (rng.standard_normal((300, 4)) * 0.05).astype(np.float32)
    precision, recall = precision_recall(collapsed, reference)
    assert precision > 0.95
    assert recall < 0.2


def test_a_set_against_itself_is_perfect_and_far_sets_share_nothing():
    x = np.random.default_rng(2).standard_normal((50, 4)).astype(np.float32)
    assert precision_recall(x, x) == (1, 1)
    assert precision_recall(x, x + 100) == (0, 0)


def test_too_few_images_are_refused():
    with pytest.raises(ValueError, match="more than 3 images"):
        precision_recall(np.zeros((3, 4)), np.zeros((9, 4)))
    with pytest.raises(ValueError, match="expected features"):
        precision_recall(np.zeros((9, 4)), np.zeros((9, 5)))
