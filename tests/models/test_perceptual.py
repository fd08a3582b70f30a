"""Perceptual losses: what they compare, where their gradients go, and that memory formats don't matter."""

import pytest
import torch
from golden import image
from torch import nn
from torch.nn import functional as F

from titokctl.models.convnext import ConvNextSmall
from titokctl.models.lpips import Lpips
from titokctl.models.perceptual import ConvNextPerceptual, Lite0Perceptual, LpipsPerceptual
from titokctl.weights.feature_networks import load_lite0

SIZE = 64


@pytest.fixture(scope="module")
def lite0() -> nn.Module:
    return Lite0Perceptual(load_lite0())


@pytest.fixture(scope="module")
def convnext() -> nn.Module:
    torch.manual_seed(0)
    network = ConvNextSmall()
    for name, parameter in network.named_parameters():
        if name.endswith("layer_scale"):
            nn.init.constant_(parameter, 0.5)
    return ConvNextPerceptual(network)


@pytest.fixture(scope="module")
def lpips() -> nn.Module:
    torch.manual_seed(0)
    network = Lpips()
    for layer in network.features:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return LpipsPerceptual(network)


def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    made = torch.from_numpy(image(2, SIZE))
    return made, made.flip(3)


@pytest.mark.parametrize("name", ["lite0", "convnext", "lpips"])
def test_gradients_go_to_the_made_picture_alone(name, request):
    loss = request.getfixturevalue(name)
    made, target = (x[:1].clone().requires_grad_() for x in pictures())
    value = loss(made, target)
    assert value.shape == ()
    assert value.item() > 0
    value.backward()
    assert made.grad.isfinite().all()
    assert made.grad.any()
    assert target.grad is None
    assert not loss.network.training
    assert all(not p.requires_grad and p.grad is None for p in loss.parameters())
    assert loss(target, target).item() == 0


@pytest.mark.parametrize("name", ["lite0", "lpips"])
def test_memory_formats_change_neither_loss_nor_gradient(name, request):
    loss = request.getfixturevalue(name)
    found = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        loss.to(memory_format=memory_format)
        made, target = (x.contiguous(memory_format=memory_format) for x in pictures())
        made.requires_grad_()
        value = loss(made, target)
        value.backward()
        found.append((value, made.grad))
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-6)


def test_convnext_compares_logits_of_pictures_at_224(convnext):
    made, target = pictures()
    shown = [F.interpolate(x, (224, 224), mode="bilinear", align_corners=False, antialias=True) for x in (made, target)]
    with torch.inference_mode():
        a, b = (convnext.network(x) for x in shown)
        assert convnext(made, target).item() == pytest.approx(((a - b) ** 2).mean().item(), rel=1e-4)


def test_lpips_is_the_mean_over_the_batch(lpips):
    with torch.inference_mode():
        made, target = pictures()
        assert lpips(made, target).item() == pytest.approx(lpips.network(made, target).mean().item(), rel=1e-5)


@pytest.mark.parametrize("name", ["lite0", "lpips"])
def test_half_precision_stays_near(name, request):
    loss = request.getfixturevalue(name)
    made, target = pictures()
    with torch.inference_mode():
        exact = loss(made, target).item()
        fast = loss.to(torch.bfloat16)(made, target)
        loss.to(torch.float32)
    assert fast.dtype == torch.float32
    assert fast.item() == pytest.approx(exact, rel=0.1)
