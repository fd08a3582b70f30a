"""PSNR and SSIM against plain loops, and codebook usage."""

import math

import numpy as np
import pytest
import torch

from titokctl.data.order import spread_positions
from titokctl.distributed.group import single_group
from titokctl.evaluation.baselines import PrincipalAxes, mean_colour_psnr
from titokctl.evaluation.reconstruction import ReconstructionSums, ShownPairs, psnr, ssim


def pictures(n: int, size: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def ssim_by_loops(a: np.ndarray, b: np.ndarray) -> float:
    """One image (H, W, 3): a window around every pixel whose neighbourhood lies inside."""
    line = np.exp(-((np.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    values = []
    for channel in range(3):
        for y in range(a.shape[0] - 10):
            for x in range(a.shape[1] - 10):
                p = a[y : y + 11, x : x + 11, channel].astype(float)
                q = b[y : y + 11, x : x + 11, channel].astype(float)
                mp, mq = (window * p).sum(), (window * q).sum()
                vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
                c = (window * (p - mp) * (q - mq)).sum()
                up = (2 * mp * mq + 6.5025) * (2 * c + 58.5225)
                values.append(up / ((mp**2 + mq**2 + 6.5025) * (vp + vq + 58.5225)))
    return float(np.mean(values))


def test_psnr_pooled_and_mean_follow_from_the_errors():
    a = pictures(3)
    b = a.copy()
    b[0] = a[0] // 2
    b[1] = 255 - a[1]
    errors = ((a.astype(float) - b.astype(float)) ** 2).mean((1, 2, 3))
    sums = ReconstructionSums()
    sums.add(a[:1], b[:1])
    sums.add(a[1:], b[1:])
    score = sums.score()
    assert score.images == 3
    assert score.psnr_pooled == pytest.approx(10 * math.log10(255**2 / errors.mean()))
    expected = [10 * math.log10(255**2 / e) for e in errors[:2]] + [100]
    assert score.psnr_mean == pytest.approx(np.mean(expected))


def test_one_level_off_everywhere_is_48_db():
    assert psnr(1.0) == pytest.approx(48.1308, abs=1e-4)
    assert psnr(0.0) == math.inf


def test_ssim_agrees_with_loops_over_windows():
    a = pictures(2, 14)
    b = (a * 0.7 + 20).astype(np.uint8)
    tensors = (torch.from_numpy(x).permute(0, 3, 1, 2).double() for x in (a, b))
    np.testing.assert_allclose(ssim(*tensors).numpy(), [ssim_by_loops(p, q) for p, q in zip(a, b, strict=True)])


def test_equal_images_have_ssim_1_and_tiny_ones_have_none():
    sums = ReconstructionSums()
    sums.add(pictures(2), pictures(2))
    assert sums.score().ssim == pytest.approx(1)
    tiny = ReconstructionSums()
    tiny.add(pictures(2, 8), pictures(2, 8))
    assert tiny.score().ssim is None


def test_pairs_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        ReconstructionSums().add(pictures(2), pictures(3))
    with pytest.raises(ValueError, match="float64"):
        ReconstructionSums().add(pictures(2), pictures(2).astype(float))
    with pytest.raises(ValueError, match="no images"):
        ReconstructionSums().score()


def test_shown_pairs_are_spread_over_the_set():
    """In whatever batches they come: the first images may all be of one class."""
    images = np.arange(100, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    for size in (1, 7, 64, 100):
        shown = ShownPairs(8, len(images), 2)
        for first in reversed(range(0, len(images), size)):
            batch = images[first : first + size]
            shown.add(batch, 255 - batch, np.arange(first, first + len(batch)))
        pairs = shown.result(single_group())
        assert [int(original[0, 0, 0]) for original, _ in pairs] == spread_positions(100, 8).tolist()
        assert all((original + made == 255).all() for original, made in pairs)
    few = ShownPairs(8, 3, 2)
    few.add(images[:2], images[:2], np.array([0, 2]))
    assert len(few.result(single_group())) == 2, "an image that can't be read leaves no gap"


def test_baselines_are_ordered_as_they_must_be():
    """More numbers give more; bits on axes lie between; the mean colour is the poorest."""
    draws = np.random.default_rng(0)
    factors, axes = draws.normal(size=(400, 40)), draws.normal(size=(40, 8 * 8 * 3))
    scales = 0.8 ** np.arange(40)
    pixels = (128 + 12 * (factors * scales) @ axes).clip(0, 255).astype(np.uint8).reshape(400, 8, 8, 3)
    found = PrincipalAxes(pixels[:300])
    by_numbers = [found.psnr_of_numbers(pixels[300:], numbers) for numbers in (1, 4, 16, 40)]
    by_bits = [found.psnr_of_bits(pixels[300:], bits) for bits in (1, 20, 200)]
    assert by_numbers == sorted(by_numbers)
    assert by_bits == sorted(by_bits)
    assert mean_colour_psnr(pixels[300:]) < by_numbers[2]
    exact = -10 * np.log10(np.square((pixels[300:] - pixels[:300].mean(0)) / 255.0).mean())
    assert found.psnr_of_bits(pixels[300:], 1e-6) == pytest.approx(exact, abs=0.05)
