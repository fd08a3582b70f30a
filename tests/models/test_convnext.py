"""ConvNeXt-S: torchvision's names and shapes, and its arithmetic written out with random weights."""

import pytest
import torch
from torch.nn import functional as F

from titokctl.models.convnext import ConvNextSmall

STAGES = ((3, 96), (3, 192), (27, 384), (3, 768))
EPS = 1e-6


def layout() -> dict[str, tuple[int, ...]]:
    """Every tensor of torchvision's convnext_small."""

    def affine(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}

    table = affine("features.0.0", 96, 3, 4, 4) | affine("features.0.1", 96)
    for stage, (depth, width) in enumerate(STAGES):
        for i in range(depth):
            block = f"features.{2 * stage + 1}.{i}"
            table |= {f"{block}.layer_scale": (width, 1, 1)}
            table |= affine(f"{block}.block.0", width, 1, 7, 7) | affine(f"{block}.block.2", width)
            table |= affine(f"{block}.block.3", 4 * width, width) | affine(f"{block}.block.5", width, 4 * width)
        if stage < 3:
            halving, wider = f"features.{2 * stage + 2}", STAGES[stage + 1][1]
            table |= affine(f"{halving}.0", width) | affine(f"{halving}.1", wider, width, 2, 2)
    return table | affine("classifier.0", 768) | affine("classifier.2", 1000, 768)


@pytest.fixture(scope="module")
def network() -> ConvNextSmall:
    draws = torch.Generator().manual_seed(0)
    network = ConvNextSmall().eval().requires_grad_(False)
    for name, parameter in network.named_parameters():
        values = torch.randn(parameter.shape, generator=draws)
        fan_in = parameter[0].numel()
        is_kernel = parameter.ndim in (2, 4)
        parameter.copy_(values / fan_in**0.5 if is_kernel else 0.1 * values + (not name.endswith("bias")))
    return network


def plain(network: ConvNextSmall, images: torch.Tensor) -> torch.Tensor:
    """Logits in float64, from the named tensors alone."""
    w = {name: tensor.double() for name, tensor in network.state_dict().items()}

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:  # over channels, which lie second
        centered = x - x.mean(1, keepdim=True)
        unit = centered / (centered.square().mean(1, keepdim=True) + EPS).sqrt()
        shape = (1, -1, *[1] * (x.ndim - 2))
        return unit * w[f"{name}.weight"].view(shape) + w[f"{name}.bias"].view(shape)

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return torch.einsum("bchw,dc->bdhw", x, w[f"{name}.weight"]) + w[f"{name}.bias"].view(1, -1, 1, 1)

    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (images.double() - mean.double().view(3, 1, 1)) / deviation.double().view(3, 1, 1)
    x = norm(F.conv2d(x, w["features.0.0.weight"], w["features.0.0.bias"], stride=4), "features.0.1")
    for stage, (depth, width) in enumerate(STAGES):
        for i in range(depth):
            name = f"features.{2 * stage + 1}.{i}"
            kernel, bias = w[f"{name}.block.0.weight"], w[f"{name}.block.0.bias"]
            y = norm(F.conv2d(x, kernel, bias, padding=3, groups=width), f"{name}.block.2")
            y = linear(y, f"{name}.block.3")
            y = 0.5 * y * (1 + torch.erf(y / 2**0.5))
            x = x + w[f"{name}.layer_scale"] * linear(y, f"{name}.block.5")
        if stage < 3:
            name = f"features.{2 * stage + 2}"
            x = F.conv2d(norm(x, f"{name}.0"), w[f"{name}.1.weight"], w[f"{name}.1.bias"], stride=2)
    x = norm(x.mean((2, 3)), "classifier.0")
    return x @ w["classifier.2.weight"].T + w["classifier.2.bias"]


def test_names_and_shapes_are_torchvisions():
    with torch.device("meta"):
        tensors = ConvNextSmall().state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == layout()
    assert sum(tensor.numel() for tensor in tensors.values()) == 50_223_688


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 32)])
def test_logits_equal_the_plain_version(network, height, width):
    images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    found = network(images)
    assert found.shape == (2, 1000)
    torch.testing.assert_close(found.double(), plain(network, images), rtol=1e-4, atol=1e-4)
