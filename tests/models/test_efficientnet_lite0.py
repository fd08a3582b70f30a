"""EfficientNet-Lite0 against the published network's features, and the shape of its weight table."""

import numpy as np
import pytest
import torch
from golden import golden, image, keys

from titokctl.errors import UserError
from titokctl.models.efficientnet_lite0 import EfficientNetLite0
from titokctl.weights.feature_networks import find_lite0, lite0_from, load_lite0
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
        lite0_from(cut)


def test_a_tensor_of_another_shape_is_refused_by_name(published):
    with pytest.raises(UserError, match=r"classifier\.weight"):
        lite0_from(published | {"_fc.weight": torch.zeros(10, 1280)})


def test_odd_sizes_are_padded_as_tensorflow_does():
    torch.manual_seed(0)
    network = EfficientNetLite0().eval()
    with torch.inference_mode():
        maps = network.maps(torch.rand(1, 3, 75, 64))
    assert maps[0].shape == (1, 32, 38, 32)
    assert maps[-1].shape == (1, 320, 3, 2)


def test_half_precision_stays_near(published):
    images = torch.from_numpy(image(2, 64)).repeat_interleave(2, 0)
    with torch.inference_mode():
        exact = lite0_from(published).features(images)
        fast = lite0_from(published).to(torch.bfloat16).features(images)
    assert fast.dtype == torch.float32
    assert float((fast - exact).norm() / exact.norm()) < 0.05
