"""The resize against Pillow's own, to the bit."""

import hashlib
import itertools
from dataclasses import replace

import numpy as np
import pytest
from image_files import noise
from PIL import Image

from titokctl.data.resize import across_pass, resize, run_across

KINDS = {"bicubic": Image.Resampling.BICUBIC, "box": Image.Resampling.BOX}
EDGES = (1, 2, 7, 63, 150, 301)


def two_passes(pixels: np.ndarray, height: int, width: int, kind: str) -> np.ndarray:
    """Pillow, held to the horizontal pass first by two calls that each have only one."""
    across = Image.fromarray(pixels).resize((width, pixels.shape[0]), KINDS[kind])
    return np.asarray(across.resize((width, height), KINDS[kind]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("height", EDGES)
def test_equals_pillow_for_all_sizes(height: int, kind: str) -> None:
    for width, new_height, new_width in itertools.product(EDGES, (1, 5, 64, 160), (3, 64, 97)):
        pixels = noise(height, width, seed=height * width)
        expected = two_passes(pixels, new_height, new_width, kind)
        np.testing.assert_array_equal(resize(pixels, (new_height, new_width), kind=kind), expected)


def test_equals_pillows_own_order_for_wide_images() -> None:
    pixels = noise(150, 400)
    expected = np.asarray(Image.fromarray(pixels).resize((171, 64), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(resize(pixels, (64, 171)), expected)


@pytest.mark.parametrize("extreme", [0, 255])
def test_clips_between_the_passes_as_pillow_does(extreme: int) -> None:
    pixels = np.full((90, 90, 3), extreme, np.uint8)
    pixels[::3, ::2] = 255 - extreme  # overshoots of the bicubic filter leave the range of a byte
    np.testing.assert_array_equal(resize(pixels, (140, 31)), two_passes(pixels, 140, 31, "bicubic"))


def test_a_window_is_a_part_of_the_whole() -> None:
    pixels = noise(90, 131)
    whole = resize(pixels, (64, 93))
    for top, left, height, width in ((0, 0, 64, 64), (0, 14, 64, 64), (63, 92, 1, 1), (5, 0, 9, 93)):
        part = resize(pixels, (64, 93), (top, left, height, width))
        np.testing.assert_array_equal(part, whole[top : top + height, left : left + width])


def test_a_window_of_an_enormous_result_costs_only_itself() -> None:
    strip = noise(2, 3000)
    part = resize(strip, (2000, 3_000_000), (1000, 1_500_000, 16, 16))
    assert part.shape == (16, 16, 3)


def test_equal_edges_are_left_alone() -> None:
    pixels = noise(40, 30)
    np.testing.assert_array_equal(resize(pixels, (40, 30)), pixels)
    np.testing.assert_array_equal(resize(pixels, (40, 30), (3, 2, 8, 9)), pixels[3:11, 2:11])


def test_strided_input() -> None:
    pixels = noise(60, 50)
    flipped = pixels[::-1, ::-1]
    np.testing.assert_array_equal(resize(flipped, (32, 27)), resize(np.ascontiguousarray(flipped), (32, 27)))


def test_sums_that_float32_can_not_decide_are_settled() -> None:
    pixels = noise(300, 301)
    plan = across_pass(301, 97, 0, 97)
    tight = replace(plan, margin=0.0)
    wide = replace(plan, margin=0.4)
    planes = pixels.transpose(2, 0, 1)
    exact = run_across(plan, planes).copy()
    expected = np.asarray(Image.fromarray(pixels).resize((97, 300), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(exact.transpose(0, 2, 1), expected)
    np.testing.assert_array_equal(run_across(wide, planes), exact)
    doubtful = np.abs(run_across(tight, planes) - exact)
    assert 0 < plan.margin < 1e-3
    assert doubtful.max() <= 1
    # Every border occurs: the two levels in a row of equal pixels have every possible distance.
    steps = np.repeat(np.arange(256, dtype=np.uint8), 2)[None, :, None].repeat(3, axis=2)
    halved = np.asarray(Image.fromarray(steps).resize((1024, 1), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(resize(steps, (1, 1024)), halved)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_any_number_of_channels(channels: int) -> None:
    pixels = noise(40, 50, channels)
    planes = [resize(pixels[..., c : c + 1], (31, 77)) for c in range(channels)]
    np.testing.assert_array_equal(resize(pixels, (31, 77)), np.concatenate(planes, axis=2))


@pytest.mark.parametrize("window", [(0, 0, 65, 64), (-1, 0, 3, 3), (0, 60, 3, 5), (0, 0, 0, 4)])
def test_a_window_outside_is_refused(window: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="is not inside"):
        resize(noise(80, 80), (64, 64), window)


# SHA-256 starts of what Pillow 11.3 gives for the whole resize, and Pillow 13.0 for one pass at a time (of the third, a
# tall image, Pillow 13.0 by itself makes something else): they hold the pixels still when Pillow changes.
STORED = {
    (375, 500, 256, 341): "ebd0cf875c67a749",
    (500, 375, 341, 256): "078b2bc98dcd112e",
    (1000, 100, 640, 64): "e445c681e669964e",
    (33, 47, 64, 91): "bd13ef298cb799ea",
}


@pytest.mark.parametrize("sizes", STORED)
def test_stored_results(sizes: tuple[int, int, int, int]) -> None:
    height, width, new_height, new_width = sizes
    made = resize(formula(height, width), (new_height, new_width))
    assert hashlib.sha256(made.tobytes()).hexdigest()[:16] == STORED[sizes]


def formula(height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8 by arithmetic alone, so that no random generator can change it."""
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    return ((y * y * 7 + x * x * 13 + x * y * 29 + c * 101) % 256).astype(np.uint8)
