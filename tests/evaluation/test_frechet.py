"""The Fréchet distance against closed forms, an independent numpy version, and the hard cases."""

import numpy as np
import pytest

from titokctl.evaluation.frechet import Gaussian, GaussianSums, frechet_distance, gaussian_of, trace_of_root


def random_covariance(rng: np.random.Generator, width: int, rank: int | None = None) -> np.ndarray:
    a = rng.standard_normal((width, rank or 2 * width))
    return a @ a.T / a.shape[1]


def numpy_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Through the eigenvalues of the product itself, which is another way than ours."""
    s1, s2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    values = np.linalg.eigvals(s1 @ s2)
    root = np.sqrt(np.clip(values.real, 0, None)).sum()
    difference = x.mean(0) - y.mean(0)
    return float(difference @ difference + np.trace(s1) + np.trace(s2) - 2 * root)


def test_commuting_covariances_have_a_closed_form():
    rng = np.random.default_rng(0)
    q, _ = np.linalg.qr(rng.standard_normal((40, 40)))
    a, b = rng.uniform(0.1, 3, 40), rng.uniform(0.1, 3, 40)
    mean_a, mean_b = rng.standard_normal(40), rng.standard_normal(40)
    expected = ((mean_a - mean_b) ** 2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    found = frechet_distance(Gaussian(mean_a, q * a @ q.T), Gaussian(mean_b, q * b @ q.T))
    assert found == pytest.approx(expected, abs=1e-9)


def test_agrees_with_an_independent_version_on_features():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((300, 24)) @ rng.standard_normal((24, 24))
    y = rng.standard_normal((200, 24)) + 0.3
    assert frechet_distance(gaussian_of(x), gaussian_of(y)) == pytest.approx(numpy_distance(x, y), rel=1e-9)


@pytest.mark.parametrize("n", [30, 200, 1000])
def test_a_set_against_itself_is_zero_also_with_fewer_images_than_features(n):
    x = np.random.default_rng(2).gamma(0.5, 1.0, (n, 256)).astype(np.float32)
    assert frechet_distance(gaussian_of(x), gaussian_of(x)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("n", "m"), [(40, 60), (60, 40), (40, 400), (400, 40)])
def test_few_images_have_the_distance_of_their_covariances(n, m):
    rng = np.random.default_rng(8)
    x, y = rng.gamma(0.5, 1.0, (n, 96)).astype(np.float32), rng.gamma(0.7, 1.0, (m, 96)).astype(np.float32)
    by_covariances = [Gaussian(s.mean(0, dtype=float), np.cov(s, rowvar=False)) for s in (x, y)]
    expected = frechet_distance(*by_covariances)
    assert frechet_distance(gaussian_of(x), gaussian_of(y)) == pytest.approx(expected, rel=1e-7)


def test_rank_deficient_covariances_in_different_subspaces():
    rng = np.random.default_rng(3)
    s1, s2 = np.zeros((20, 20)), np.zeros((20, 20))
    s1[:8, :8], s2[8:, 8:] = random_covariance(rng, 8), random_covariance(rng, 12)
    assert trace_of_root(s1, s2) == pytest.approx(0, abs=1e-6)
    assert trace_of_root(np.zeros((5, 5)), np.eye(5)) == 0


@pytest.mark.parametrize("smallest", [1e-3, 1e-6, 1e-9, 1e-12, 0.0])
def test_nearly_dependent_features_change_nothing_abruptly(smallest):
    """Eigenvalues are known, so the trace is; the way to it differs from well-conditioned to singular."""
    rng = np.random.default_rng(7)
    q, _ = np.linalg.qr(rng.standard_normal((64, 64)))
    a, b = np.geomspace(1, 1e-3, 64), rng.uniform(0.5, 2, 64)
    a[40:] *= smallest
    expected = np.sqrt(a * b).sum()
    assert trace_of_root(q * a @ q.T, q * b @ q.T) == pytest.approx(expected, abs=2e-6)
    assert trace_of_root(q * b @ q.T, q * a @ q.T) == pytest.approx(expected, abs=2e-6)


def test_is_symmetric():
    rng = np.random.default_rng(4)
    a = Gaussian(rng.standard_normal(30), random_covariance(rng, 30, rank=10))
    b = Gaussian(rng.standard_normal(30), random_covariance(rng, 30))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)


def test_parts_equal_the_whole():
    x = np.random.default_rng(5).standard_normal((5000, 16)).astype(np.float32)
    whole, parts = GaussianSums(16), GaussianSums(16)
    whole.add(x)
    for first in range(0, 5000, 250):
        parts.add(x[first : first + 250])
    a, b = whole.gaussian(), parts.gaussian()
    assert a.count == b.count == 5000
    np.testing.assert_allclose(a.mean, b.mean, atol=1e-12)
    np.testing.assert_allclose(a.covariance, np.cov(x.astype(float), rowvar=False), atol=1e-12)
    np.testing.assert_allclose(a.covariance, b.covariance, atol=1e-12)


def test_sums_in_a_thread_have_the_same_bits_and_can_be_interrupted():
    x = np.random.default_rng(6).standard_normal((5000, 16)).astype(np.float32)
    plain, threaded = GaussianSums(16), GaussianSums(16, in_thread=True)
    for first in range(0, 3000, 250):
        plain.add(x[first : first + 250])
        threaded.add(x[first : first + 250])
    resumed = GaussianSums(16, in_thread=True)
    resumed.restore({name: values.copy() for name, values in threaded.state().items()})
    for first in range(3000, 5000, 250):
        for sums in (plain, threaded, resumed):
            sums.add(x[first : first + 250])
    wanted = plain.gaussian()
    for found in (threaded.gaussian(), resumed.gaussian()):
        assert found.count == 5000
        assert np.array_equal(found.mean, wanted.mean)
        assert np.array_equal(found.covariance, wanted.covariance)


def test_what_is_the_same_in_all_images_has_no_variance_below_zero():
    x = np.tile(np.random.default_rng(7).random(100, np.float32), (300, 1))
    variances = gaussian_of(x).covariance.diagonal()
    assert variances.min() >= 0
    assert variances.max() < 1e-12


def test_what_cannot_be_compared_is_refused():
    g = gaussian_of(np.random.default_rng(6).standard_normal((20, 4)))
    with pytest.raises(ValueError, match="different widths: 4 and 5"):
        frechet_distance(g, Gaussian(np.zeros(5), np.eye(5)))
    with pytest.raises(ValueError, match="not finite"):
        frechet_distance(g, Gaussian(np.full(4, np.nan), np.eye(4)))
    with pytest.raises(ValueError, match="at least 2 images"):
        gaussian_of(np.zeros((1, 4)))
    with pytest.raises(ValueError, match="expected features"):
        GaussianSums(4).add(np.zeros((2, 5)))
