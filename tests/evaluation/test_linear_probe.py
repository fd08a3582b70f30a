"""The probe separates what is separable, has its gradient at zero, and is the same every time."""

import numpy as np
import pytest

from titokctl.evaluation.linear_probe import fit_probe


def clouds(n: int, seed: int, width: int = 20, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    centres = np.random.default_rng(0).standard_normal((classes, width)) * 2
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    return (centres[labels] + rng.standard_normal((n, width))).astype(np.float32), labels


def test_separable_classes_are_told_apart_on_new_rows():
    x, labels = clouds(400, 1)
    new, new_labels = clouds(400, 2)
    probe = fit_probe(x, labels, 4)
    assert probe.accuracy(new, new_labels) > 0.95
    shuffled = np.random.default_rng(3).permutation(labels)
    assert fit_probe(x, shuffled, 4).accuracy(new, new_labels) < 0.6


def test_the_optimum_is_reached():
    x, labels = clouds(300, 4)
    probe = fit_probe(x, labels, 4, penalty=0.05)
    z = (x - x.mean(0)) / x.std(0)
    logits = z @ probe.weight.numpy().T + probe.bias.numpy()
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    gradient = (p - np.eye(4)[labels]).T @ z / len(x) + 0.05 * probe.weight.numpy()
    assert np.abs(gradient).max() < 1e-3


def test_scale_shift_and_constant_features_do_not_matter():
    x, labels = clouds(300, 5)
    moved = np.hstack([x * 1000 + 7, np.full((300, 1), 3, np.float32)])
    assert (fit_probe(x, labels, 4).predict(x) == fit_probe(moved, labels, 4).predict(moved)).mean() > 0.99


def test_is_deterministic():
    x, labels = clouds(200, 6)
    a, b = fit_probe(x, labels, 4), fit_probe(x, labels, 4)
    assert a.weight.equal(b.weight)


def test_labels_out_of_range_are_refused():
    x, labels = clouds(20, 7)
    with pytest.raises(ValueError, match=r"\[0, 3\)"):
        fit_probe(x, labels + 3, 3)
    with pytest.raises(ValueError, match="expected features"):
        fit_probe(x, labels[:5], 4)
