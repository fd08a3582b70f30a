"""FID's Inception against the official network, and TensorFlow 1's resize against its formula."""

import numpy as np
import pytest
import torch
from golden import fill, golden, image, keys
from PIL import Image

from titokctl.errors import UserError
from titokctl.models.inception import RESIZES, Inception, resize_as_tensorflow_1
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


def taken_in(size: int) -> np.ndarray:
    """Noise with extremes, (2, size, size + 7, 3) uint8."""
    images = np.random.default_rng(0).integers(0, 256, (2, size, size + 7, 3), dtype=np.uint8)
    images[:, : size // 2] = np.where(images[:, : size // 2] > 128, 255, 0)
    return images


@pytest.mark.parametrize("size", [32, 256, 292, 400])
def test_the_resize_of_clean_fid_is_pillows_on_float_images(size):
    images = taken_in(size)
    channels = [
        [np.asarray(Image.fromarray(image[..., c].astype(np.float32)).resize((299, 299), Image.Resampling.BICUBIC))
         for c in range(3)]
        for image in images
    ]  # fmt: skip
    expected = (np.array(channels).clip(0, 255) - 128) / 128
    found = RESIZES["clean"](torch.from_numpy(images).permute(0, 3, 1, 2).float())
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)  # a hundredth of a level


@pytest.mark.parametrize("size", [32, 256, 400])
def test_the_resize_of_pytorch_fid_is_bilinear_with_half_pixel_centres(size):
    images = taken_in(size)
    expected = np.empty((2, 3, 299, 299))
    places = [np.clip((np.arange(299) + 0.5) * n / 299 - 0.5, 0, None) for n in images.shape[1:3]]
    for pixels, out in zip(images.astype(float) / 255, expected, strict=True):
        rows, columns = (np.minimum(p.astype(int), n - 1) for p, n in zip(places, pixels.shape[:2], strict=True))
        y, x = (places[0] - rows)[:, None, None], (places[1] - columns)[None, :, None]
        below, beside = np.minimum(rows + 1, pixels.shape[0] - 1), np.minimum(columns + 1, pixels.shape[1] - 1)
        top = pixels[rows][:, columns] * (1 - x) + pixels[rows][:, beside] * x
        bottom = pixels[below][:, columns] * (1 - x) + pixels[below][:, beside] * x
        out[:] = (2 * (top * (1 - y) + bottom * y) - 1).transpose(2, 0, 1)
    found = RESIZES["pytorch"](torch.from_numpy(images).permute(0, 3, 1, 2).float())
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)


def test_the_features_differ_with_the_resize(network):
    images = torch.from_numpy(np.round(255 * image(1, 64)).astype(np.float32))
    with torch.inference_mode():
        features = {name: network(images, name).pool_2048 for name in RESIZES}
    assert torch.equal(features["tf1"], network(images).pool_2048)
    assert not torch.allclose(features["tf1"], features["pytorch"], rtol=1e-3)
    assert not torch.allclose(features["pytorch"], features["clean"], rtol=1e-3)


def test_a_table_of_another_network_is_refused():
    with pytest.raises(UserError, match="not the weights of FID's Inception"):
        inception_from({"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)})
