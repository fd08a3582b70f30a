"""FID's Inception against the official network, and TensorFlow 1's resize against its formula."""

import numpy as np
import pytest
import torch
from golden import fill, golden, image, keys

from titokctl.errors import UserError
from titokctl.models.inception import Inception, resize_as_tensorflow_1
from titokctl.weights.feature_networks import inception_from


@pytest.fixture(scope="module")
def network() -> Inception:
    table = {name: torch.from_numpy(fill(name, shape)) for name, shape in keys("inception").items() if shape}
    return inception_from(table)


def test_every_output_is_the_official_one(network):
    expected = np.load(golden("inception.npz"))
    images = torch.from_numpy(np.round(255 * image(1)).astype(np.float32))
    with torch.inference_mode():
        found = network(images)
    names = {
        "64": found.pool_64, "192": found.pool_192, "768": found.pool_768, "2048": found.pool_2048,
        "spatial": found.spatial, "logits_unbiased": found.logits_unbiased, "logits": found.logits,
    }  # fmt: skip
    assert names.keys() == set(expected.files)
    for name, ours in names.items():
        theirs = expected[name].reshape(ours.shape)
        assert np.linalg.norm(ours.numpy() - theirs) < 1e-4 * np.linalg.norm(theirs), name


def test_memory_format_does_not_change_the_numbers(network):
    images = torch.from_numpy(np.round(255 * image(1, 64)).astype(np.float32))
    other = Inception().eval()
    other.load_state_dict(network.state_dict())
    other.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        assert torch.allclose(network(images).pool_2048, other(images).pool_2048, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("height", "width", "size"), [(5, 7, 9), (16, 16, 5), (4, 4, 4)])
def test_resize_follows_the_formula_of_tensorflow_1(height, width, size):
    x = np.random.default_rng(0).uniform(0, 255, (height, width))
    expected = np.empty((size, size))
    for i in range(size):
        for j in range(size):
            y, u = i * height / size, j * width / size
            a, b = int(y), int(u)
            c, d = min(a + 1, height - 1), min(b + 1, width - 1)
            top = x[a, b] + (x[a, d] - x[a, b]) * (u - b)
            bottom = x[c, b] + (x[c, d] - x[c, b]) * (u - b)
            expected[i, j] = top + (bottom - top) * (y - a)
    found = resize_as_tensorflow_1(torch.from_numpy(x)[None, None].expand(2, 3, -1, -1), size)
    np.testing.assert_allclose(found[1, 2].numpy(), expected, atol=1e-4)


def test_a_table_of_another_network_is_refused():
    with pytest.raises(UserError, match="not the weights of FID's Inception"):
        inception_from({"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)})
