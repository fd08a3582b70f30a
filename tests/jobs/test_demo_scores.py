"""The demo's scores: distances of every set from training images, and attributes that probes read."""

import numpy as np
import pytest
import torch

from titokctl.context import Context
from titokctl.data.scenes.factors import CLASS_ATTRIBUTES, scene
from titokctl.data.scenes.renderer import render
from titokctl.evaluation.extractors import Extractor
from titokctl.jobs.demo import scores

EDGE, TRAINING, COMPARED = 32, 480, 60


def quarters(images: torch.Tensor) -> dict[str, torch.Tensor]:
    parts = images.float().unflatten(2, (2, -1)).unflatten(1, (2, -1))  # (B, 2, h, 2, w, 3)
    return {"pool": parts.mean((2, 4)).flatten(1) / 255}


EXTRACTORS = {name: Extractor(name, quarters, {"pool": 12}, 16, "cpu") for name in (scores.SEEN, scores.UNSEEN)}


def scenes(seed, count):
    return np.stack([render(scene(seed, i), EDGE) for i in range(count)])


@pytest.fixture(scope="module")
def pictures():
    held_out = scenes(2, COMPARED)
    noise = np.random.default_rng(0).integers(0, 256, held_out.shape, dtype=np.uint8)
    sets = {scores.HELD_OUT: held_out, scores.RECONSTRUCTIONS: held_out, scores.SAMPLES: held_out[::-1],
            scores.SHUFFLED: noise}  # fmt: skip
    return scenes(1, TRAINING), sets


def scored(pictures, attributes, num_classes=30, num_reference=200):
    training, sets = pictures
    labels = [np.arange(count) % num_classes for count in (TRAINING, COMPARED)]
    images = scores.DemoImages(training, labels[0], sets, labels[1], attributes, num_reference)
    return scores.score(images, EXTRACTORS, Context())


def test_shape_and_colour_are_read_from_what_an_image_shows_and_not_from_its_label(pictures):
    found = {probe.attribute: probe for probe in scored(pictures, CLASS_ATTRIBUTES).probes}
    assert found.keys() == {"shape", "colour"}
    for name, chance in (("shape", 1 / 5), ("colour", 1 / 6)):
        probe = found[name]
        assert probe.held_out == probe.reconstructions >= 0.9, "the same images"
        assert probe.samples < 0.6, "samples in reverse order show other classes than they should"
        assert probe.chance == chance


def test_every_set_is_compared_with_the_reference_on_both_networks(pictures):
    found = scored(pictures, {})
    assert found.probes == []
    assert [y.name for y in found.yardsticks] == list(pictures[1])
    assert all(y.distances.keys() == {"fd-lite0", "kid-lite0", "fd-lite2", "kid-lite2"} for y in found.yardsticks)
    held_out, again, samples, noise = (y.distances["kid-lite2"] for y in found.yardsticks)
    assert held_out == again == pytest.approx(samples, abs=1e-5), "the order of a set does not matter"
    assert noise > 10 * abs(held_out)
    assert found.kid_ratio > 10


def test_classes_of_ones_own_images_are_read_from_features(pictures):
    """Also where fewer training images have features than there are."""
    (probe,) = scored(pictures, {"class": np.arange(2)}, num_classes=2).probes
    assert probe.attribute == "class"
    assert probe.chance == 0.5
    assert 0.3 < probe.held_out < 0.9, "even and odd scenes hardly differ in the colours of their quarters"


def test_scores_do_not_depend_on_training_images_behind_the_reference_but_for_histograms(pictures):
    training, sets = pictures
    few = scored((np.concatenate([training[:200], training[:280]]), sets), CLASS_ATTRIBUTES)
    many = scored(pictures, CLASS_ATTRIBUTES)
    assert few.yardsticks == many.yardsticks
    assert few.closer == many.closer
