"""Inputs of the probes that read shape and colour: what they keep of an image, and what not."""

import numpy as np
from PIL import Image

from titokctl.data.scenes.factors import CLASS_ATTRIBUTES, scene
from titokctl.data.scenes.renderer import render
from titokctl.evaluation.attributes import colour_histogram, edge_histogram, softened
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


def blurred(images):
    side = images.shape[1]
    small = [Image.fromarray(i).resize((side // 3, side // 3), Image.Resampling.BOX) for i in images]
    return np.stack([np.asarray(i.resize((side, side), Image.Resampling.BICUBIC)) for i in small])


def test_shapes_are_read_from_sharp_and_from_blurred_scenes():
    training, labels = scenes(1, 600)
    others, their = scenes(2, 150)
    shapes = CLASS_ATTRIBUTES["shape"]
    rows = [edge_histogram(training), edge_histogram(softened(training))]
    probe = fit_probe(np.concatenate(rows), np.tile(shapes[labels], 2), 5)
    assert probe.accuracy(edge_histogram(others), shapes[their]) >= 0.9
    assert probe.accuracy(edge_histogram(blurred(others)), shapes[their]) >= 0.8
    upside_down = others[:, ::-1].copy()
    assert probe.accuracy(edge_histogram(upside_down), shapes[their]) < 0.7, "a cone stands on its base"


def test_an_edge_counts_by_its_direction_and_not_by_its_contrast_or_sign():
    pixels = np.full((4, 64, 64, 3), 100, np.uint8)
    pixels[0, :, 32:] = 110  # an upright edge, faint
    pixels[1, :, 32:, 1] = 0  # the same edge, in green alone, strong, and the other way round
    pixels[2, 32:] = 110  # a level one
    upright, other, level, plain = edge_histogram(pixels)
    np.testing.assert_allclose(upright, other, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(upright), 1, rtol=1e-6)
    assert upright @ level < 0.05
    assert not plain.any()
    directions, cells = np.nonzero(upright.reshape(9, 64))
    assert set(directions) == {0}
    assert set(cells % 8) == {3, 4}, "only cells beside the edge"


def test_an_edge_histogram_does_not_depend_on_the_images_beside_it():
    images, _ = scenes(3, 300)
    found = edge_histogram(images)
    assert found.shape == (300, 576)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[290:], edge_histogram(images[290:]))
    assert edge_histogram(images[:0]).shape == (0, 576)


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
