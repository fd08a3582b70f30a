"""EfficientNet-Lite against the published network's features, and the shape of its weight table."""

import numpy as np
import pytest
import torch
from golden import golden, image, keys

from titokctl.data.scenes.factors import scene
from titokctl.data.scenes.renderer import render
from titokctl.errors import UserError
from titokctl.evaluation.extractors import ExtractorOptions, open_extractor, resized
from titokctl.evaluation.features import extract
from titokctl.models.efficientnet_lite import LITE0, EfficientNetLite
from titokctl.weights.feature_networks import find_lite0, lite_from, load_lite0, load_lite2
from titokctl.weights.pickled import read_pickled


@pytest.fixture(scope="module")
def published():
    return read_pickled(find_lite0())


def test_features_and_logits_are_the_published_ones():
    expected = np.load(golden("efficientnet_lite0.npz"))
    images = torch.from_numpy(image(2, 224))
    with torch.inference_mode():
        network = load_lite0()
        features, logits = network.features(images).numpy(), network(images).numpy()
    for ours, name in ((features, "features"), (logits, "logits")):
        assert np.linalg.norm(ours - expected[name]) < 1e-5 * np.linalg.norm(expected[name])


def test_the_installed_file_holds_the_published_names_and_shapes(published):
    assert {name: tuple(value.shape) for name, value in published.items()} == keys("efficientnet_lite0")


def test_a_table_with_a_missing_tensor_is_refused_by_name(published):
    cut = {name: value for name, value in published.items() if name != "_blocks.7._bn2.running_var"}
    with pytest.raises(UserError, match=r"_blocks\.7\._bn2\.running_var"):
        lite_from(cut, LITE0)


def test_a_tensor_of_another_shape_is_refused_by_name(published):
    with pytest.raises(UserError, match=r"classifier\.weight"):
        lite_from(published | {"_fc.weight": torch.zeros(10, 1280)}, LITE0)


def test_odd_sizes_are_padded_as_tensorflow_does():
    torch.manual_seed(0)
    network = EfficientNetLite(LITE0).eval()
    with torch.inference_mode():
        maps = network.maps(torch.rand(1, 3, 75, 64))
    assert maps[0].shape == (1, 32, 38, 32)
    assert maps[-1].shape == (1, 320, 3, 2)


def test_half_precision_stays_near(published):
    images = torch.from_numpy(image(2, 64)).repeat_interleave(2, 0)
    with torch.inference_mode():
        exact = lite_from(published, LITE0).features(images)
        fast = lite_from(published, LITE0).to(torch.bfloat16).features(images)
    assert fast.dtype == torch.float32
    assert float((fast - exact).norm() / exact.norm()) < 0.05


def test_half_precision_gives_the_same_bits_with_and_without_gradients(published):
    """Without them two operations are done as one."""
    network = lite_from(published, LITE0).to(torch.bfloat16)
    images = torch.from_numpy(image(3, 96))
    with torch.inference_mode():
        joined = network.features(images)
    assert torch.equal(network.features(images), joined)


def test_lite2_sees_what_lite0_sees():
    """Two classifiers of ImageNet, trained apart, on the same rendered solids: their best guesses agree."""
    pictures = torch.from_numpy(np.stack([render(scene(0, index), 96) for index in range(24)]))
    with torch.inference_mode():
        networks = [load_lite0(), load_lite2()]
        one, other = (network(resized(pictures, network.variant.input_size) / 255) for network in networks)
    assert (other.argmax(1)[:, None] == one.topk(10).indices).any(1).float().mean() > 0.75


def test_lite2_is_an_extractor():
    extractor = open_extractor("lite2", ExtractorOptions())
    (features,) = extract(extractor, [np.zeros((2, 16, 16, 3), np.uint8)])
    assert features["pool"].shape == (2, 1280)
    assert extractor.metric_name("fid") == "fd-lite2"
