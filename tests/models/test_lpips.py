"""LPIPS against a version written out layer by layer, with random weights."""

import pytest
import torch
from torch.nn import functional as F

from titokctl.models.lpips import Lpips

# Where torchvision's vgg16 has its convolutions; the pictures are halved in front of those marked.
CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
HALVED_BEFORE = (5, 10, 17, 24)
LAST_OF_BLOCK = (2, 7, 14, 21, 28)
WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)


@pytest.fixture(scope="module")
def network() -> Lpips:
    torch.manual_seed(0)
    network = Lpips().requires_grad_(False)
    for layer in network.features:
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            torch.nn.init.normal_(layer.bias, std=0.1)
    for weight in network.channel_weights:
        torch.nn.init.uniform_(weight)
    return network.eval()


def plain(network: Lpips, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The distance in float64, a sum over places one by one."""
    tensors = {name: tensor.double() for name, tensor in network.state_dict().items()}
    distance = torch.zeros(len(a), dtype=torch.float64)
    block = 0
    x = torch.cat([a, b]).double() * 2 - 1
    for channel, (shift, scale) in enumerate([(-0.030, 0.458), (-0.088, 0.448), (-0.188, 0.450)]):
        x[:, channel] = (x[:, channel] - shift) / scale
    for i in CONVOLUTIONS:
        if i in HALVED_BEFORE:
            x = F.max_pool2d(x, 2)
        x = F.conv2d(x, tensors[f"features.{i}.weight"], tensors[f"features.{i}.bias"], padding=1).relu()
        if i in LAST_OF_BLOCK:
            p, q = (y / (y.square().sum(1, keepdim=True).sqrt() + 1e-10) for y in x.chunk(2))
            weight = tensors[f"channel_weights.{block}"]
            distance += torch.einsum("bchw,c->bhw", (p - q) ** 2, weight).mean((1, 2))
            block += 1
    return distance


def test_names_and_shapes_of_the_convolutions_are_torchvisions():
    expected = {}
    for i, before, after in zip(CONVOLUTIONS, (3, *WIDTHS), WIDTHS, strict=False):
        expected |= {f"features.{i}.weight": (after, before, 3, 3), f"features.{i}.bias": (after,)}
    expected |= {f"channel_weights.{i}": (width,) for i, width in enumerate((64, 128, 256, 512, 512))}
    with torch.device("meta"):
        assert {name: tuple(t.shape) for name, t in Lpips().state_dict().items()} == expected


@pytest.mark.parametrize(("height", "width"), [(32, 32), (50, 19)])
def test_it_equals_the_plain_version(network, height, width):
    draws = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 3, 3, height, width, generator=draws)
    found = network(a, b)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), plain(network, a, b), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(network(b, a), found)
    assert not network(a, a).any()


def test_gradients_reach_the_picture_even_where_every_channel_is_silent(network):
    silent = Lpips().requires_grad_(False)
    silent.load_state_dict(network.state_dict())
    silent.features[2].weight.zero_()
    silent.features[2].bias.fill_(-1.0)  # relu1_2 is zero everywhere, and so is its length
    a = torch.rand(2, 3, 16, 16, requires_grad=True)
    silent(a, torch.rand(2, 3, 16, 16)).sum().backward()
    assert a.grad.isfinite().all()
    b = torch.rand(2, 3, 16, 16, requires_grad=True)
    network(b, torch.rand(2, 3, 16, 16)).sum().backward()
    assert b.grad.isfinite().all()
    assert b.grad.any()
