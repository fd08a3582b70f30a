"""The discriminator against the official numbers."""

import numpy as np
import pytest
import torch
from golden import fill, golden, image, keys

from titokctl.models.discriminator import Discriminator

OFFICIAL = {
    "conv_in": "block_in.0",
    **{f"stages.{i}.conv": f"blocks.{i}.0" for i in range(3)},
    **{f"stages.{i}.norm": f"blocks.{i}.2" for i in range(3)},
    "conv_middle": "to_logits.0",
    "conv_out": "to_logits.2",
}  # fmt: skip


def official(name: str) -> str:
    module, leaf = name.rsplit(".", 1)
    return f"{OFFICIAL[module]}.{leaf}"


def filled() -> Discriminator:
    network = Discriminator()
    shapes = keys("discriminator")
    tensors = {n: torch.from_numpy(fill(official(n), shapes[official(n)])) for n in network.state_dict()}
    network.load_state_dict(tensors)
    return network


def test_names_and_shapes_are_all_of_the_official_ones():
    ours = {official(name): tuple(tensor.shape) for name, tensor in Discriminator().state_dict().items()}
    kernels = {f"blocks.{i}.1.kernel": (1, 1, 4, 4) for i in range(3)}
    assert ours | kernels == keys("discriminator")


def test_logits_are_the_official_ones():
    expected = np.load(golden("discriminator.npz"))["logits"]
    with torch.inference_mode():
        found = filled()(torch.from_numpy(image(1))).numpy()
    assert found.shape == expected.shape == (1, 1, 16, 16)
    assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize(("height", "width"), [(6, 8), (7, 5), (1, 4)])
def test_the_blur_keeps_brightness_and_halves_as_tensorflow_does(height, width):
    """Every output is the weighted mean of a 4 x 4 window, with zeros outside."""
    maps = np.random.default_rng(0).normal(size=(2, height, width))
    taps = np.array([1, 3, 3, 1]) / 8
    padded = np.pad(maps, ((0, 0), (1, 4), (1, 4)))
    expected = np.array(
        [
            [[taps @ padded[c, i : i + 4, j : j + 4] @ taps for j in range(0, width, 2)] for i in range(0, height, 2)]
            for c in range(2)
        ]
    )
    found = Discriminator().stages[0]._halved(torch.from_numpy(maps).float()[None])[0]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("size", [32, 75, 192])
def test_any_size_gives_a_grid_of_16(size):
    with torch.inference_mode():
        assert Discriminator()(torch.rand(1, 3, size, size)).shape == (1, 1, 16, 16)


def test_its_judgement_reaches_the_picture_and_leaves_frozen_weights_alone():
    network = filled().requires_grad_(False)
    images = torch.from_numpy(image(1, 64)).requires_grad_()
    (-network(images).mean()).backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()
    assert images.grad.any()
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("size", [8, 24, 32, 100, 128, 136])
def test_deterministic_kernels_give_the_same_logits_and_gradients(size):
    torch.manual_seed(0)
    network, found = Discriminator(32), []
    for wanted in (False, True):
        torch.use_deterministic_algorithms(wanted)
        try:
            images = torch.rand(2, 3, size, size + 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
            logits = network(images)
            logits.square().sum().backward()
        finally:
            torch.use_deterministic_algorithms(False)
        found.append((logits, images.grad))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)
