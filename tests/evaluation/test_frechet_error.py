"""The standard error of the Fréchet distance is the deviation that repeated drawing shows."""

import numpy as np
import pytest

from titokctl.evaluation.frechet import Gaussian, frechet_distance, gaussian_of
from titokctl.evaluation.frechet_error import frechet_standard_error


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
