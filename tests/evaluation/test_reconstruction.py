"""PSNR and SSIM against plain loops, and codebook usage."""

import math

import numpy as np
import pytest
import torch

from titokctl.data.order import spread_positions
from titokctl.distributed.group import single_group
from titokctl.evaluation.baselines import PrincipalAxes, SmallImagesCollector, linear_baselines, mean_colour_psnr
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


def collected(pixels: np.ndarray) -> SmallImagesCollector:
    """All images of a set, in batches of an odd size that come in another order."""
    small = SmallImagesCollector(len(pixels), pixels.shape[1])
    for first in reversed(range(0, len(pixels), 7)):
        small.add(pixels[first : first + 7], np.arange(first, min(first + 7, len(pixels))))
    return small


def blocks(n: int, edge: int, block: int) -> np.ndarray:
    """Images (n, S, S, 3) uint8 of `edge` x `edge` blocks, with noise of a deviation of 4 in them."""
    draws = np.random.default_rng(0)
    factors, axes = draws.normal(size=(n, 6)), draws.normal(size=(6, edge * edge * 3))
    flat = (128 + 12 * factors @ axes).reshape(n, edge, 1, edge, 1, 3).repeat(block, 2).repeat(block, 4)
    images = flat.reshape(n, edge * block, edge * block, 3)
    return (images + 4 * draws.normal(size=images.shape)).clip(0, 255).astype(np.uint8)


def test_baselines_of_large_images_are_those_of_averaged_ones():
    """96 px are averaged over blocks of 2; what averaging loses counts, so the noise limits what PCA reaches."""
    pixels = blocks(60, 48, 2)
    small = collected(pixels).result(single_group())
    assert small.pixels.shape == (60, 48, 48, 3)
    averaged = pixels.reshape(60, 48, 2, 48, 2, 3).astype(float).mean((2, 4))
    assert np.allclose(small.pixels, averaged, atol=1e-3)
    exact = np.square(pixels - averaged.repeat(2, 1).repeat(2, 2)).mean((1, 2, 3))
    assert small.lost == pytest.approx(exact, rel=1e-4)
    found = linear_baselines(small, (8,), 16, small)
    of_noise = psnr(float(small.lost.mean()) + 4**2 / 4)  # a fourth of the noise's variance stays in the averages
    assert found["psnr_pca"] == pytest.approx(of_noise, abs=0.6)
    assert found["psnr_gaussian"] < found["psnr_pca"], "32 bits are fewer than 8 numbers"
    assert linear_baselines(small, (8,), 4096, small)["psnr_gaussian"] > found["psnr_gaussian"]


def test_without_training_images_each_half_has_the_axes_of_the_other():
    """So no image is described by axes that were fitted to it: noise can't be predicted."""
    pixels = pictures(40, 8)
    small = collected(pixels).result(single_group())
    fitted = linear_baselines(small, (19,), None, small)
    crossed = linear_baselines(small, (19,), None)
    assert fitted.keys() == crossed.keys() == {"psnr_pca"}
    assert crossed["psnr_pca"] < fitted["psnr_pca"] - 1
    assert linear_baselines(small, (20,), None) == {}, "20 images have 19 axes"
    assert linear_baselines(collected(pixels[:1]).result(single_group()), (1,), 16) == {}


def test_baselines_leave_the_random_numbers_of_training_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    linear_baselines(collected(pictures(12, 8)).result(single_group()), (2,), 16)
    assert torch.equal(torch.rand(4), expected)
