"""Inputs of the probes that read shape and colour: what they keep of an image, and what not."""

import numpy as np
from PIL import Image

from titokctl.data.scenes.factors import CLASS_ATTRIBUTES, scene
from titokctl.data.scenes.renderer import render
from titokctl.evaluation.attributes import colour_histogram, softened
from titokctl.evaluation.linear_probe import fit_probe


def scenes(seed, count):
    return np.stack([render(scene(seed, i), 32) for i in range(count)]), np.arange(count) % 30


def test_colours_are_read_from_sharp_and_from_blurred_scenes():
    training, labels = scenes(1, 240)
    others, their = scenes(2, 120)
    colours = CLASS_ATTRIBUTES["colour"]
    probe = fit_probe(colour_histogram(training), colours[labels], 6)
    blurred = [np.asarray(Image.fromarray(o).resize((8, 8)).resize((32, 32), Image.Resampling.NEAREST)) for o in others]
    for seen in (others, np.stack(blurred)):
        assert probe.accuracy(colour_histogram(seen), colours[their]) >= 0.98
    assert probe.accuracy(colour_histogram(np.roll(others, 1, axis=3)), colours[their]) < 0.5, "red is not green"


def test_a_histogram_holds_the_roots_of_shares_of_the_pixels():
    pixels = np.zeros((2, 4, 4, 3), np.uint8)
    pixels[1, :1] = 255
    found = colour_histogram(pixels)
    assert found.shape == (2, 216)
    assert found[0, 0] == 1
    np.testing.assert_allclose(found[1, [0, -1]], np.sqrt([12 / 16, 4 / 16]))
    np.testing.assert_allclose((found**2).sum(1), 1, rtol=1e-6)


def test_softened_copies_have_the_colours_and_less_detail():
    images, _ = scenes(1, 12)
    copies = softened(images)
    assert np.array_equal(copies, softened(images)), "the same copies in every call"
    assert copies.shape == images.shape
    assert copies.dtype == np.uint8
    assert abs(copies.mean((1, 2), dtype=float) - images.mean((1, 2), dtype=float)).max() < 3
    detail = [np.abs(np.diff(x.astype(int), n=2, axis=1)).mean() for x in (copies, images)]
    assert detail[0] < 0.7 * detail[1]
    assert len(softened(images[:0])) == 0
