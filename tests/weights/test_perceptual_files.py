"""The networks of perceptual losses from files in the published layouts, with random values."""

from pathlib import Path

import pytest
import torch

from titokctl.errors import UserError
from titokctl.models.convnext import ConvNextSmall
from titokctl.models.lpips import Lpips
from titokctl.weights.network_files import CONVNEXT_SMALL, LPIPS_LINEAR, VGG16
from titokctl.weights.perceptual import load_convnext_small, load_lpips, load_perceptual, lpips_from

CONVOLUTIONS = {
    0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256), 14: (256, 256),
    17: (256, 512), 19: (512, 512), 21: (512, 512), 24: (512, 512), 26: (512, 512), 28: (512, 512),
}  # fmt: skip
LINEAR_WIDTHS = (64, 128, 256, 512, 512)


@pytest.fixture(scope="module")
def vgg16() -> dict[str, torch.Tensor]:
    """torchvision's layout, its classifier cut short."""
    torch.manual_seed(0)
    tensors = {}
    for i, (before, after) in CONVOLUTIONS.items():
        tensors |= {f"features.{i}.weight": torch.rand(after, before, 3, 3) - 0.5}
        tensors |= {f"features.{i}.bias": torch.randn(after)}
    return tensors | {"classifier.0.weight": torch.zeros(2, 2), "classifier.0.bias": torch.zeros(2)}


def linear() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1) for i, width in enumerate(LINEAR_WIDTHS)}


def saved(path: Path, tensors: dict[str, torch.Tensor], is_old: bool = False) -> Path:
    torch.save(tensors, path, _use_new_zipfile_serialization=not is_old)
    return path


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for file in (VGG16, LPIPS_LINEAR, CONVNEXT_SMALL):
        monkeypatch.delenv(file.variable, raising=False)


def test_lpips(tmp_path, vgg16):
    """VGG16's file is older than the zip format."""
    weights = linear()
    network = load_lpips(saved(tmp_path / "vgg.pth", vgg16, is_old=True), saved(tmp_path / "lin.pth", weights))
    expected = Lpips()
    for i in CONVOLUTIONS:
        expected.features[i].weight.data.copy_(vgg16[f"features.{i}.weight"])
        expected.features[i].bias.data.copy_(vgg16[f"features.{i}.bias"])
    for i, weight in enumerate(expected.channel_weights):
        weight.data.copy_(weights[f"lin{i}.model.1.weight"].flatten())
    a, b = torch.rand(2, 1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(network(a, b), expected(a, b))
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())


def test_convnext(tmp_path, monkeypatch):
    torch.manual_seed(0)
    expected = ConvNextSmall().eval()
    path = saved(tmp_path / "convnext.pth", expected.state_dict())
    monkeypatch.setenv(CONVNEXT_SMALL.variable, str(path))
    image = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(load_perceptual("convnext-s", "cpu", torch.float32).network(image), expected(image))


def test_each_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"vgg16-397923af\.pth is not on this machine") as caught:
        load_lpips()
    assert "https://download.pytorch.org/models/vgg16-397923af.pth" in caught.value.hint
    with pytest.raises(UserError, match=r"lpips-vgg-a78928a0\.pth is not on this machine") as caught:
        load_lpips(saved(tmp_path / "vgg.pth", {}))
    assert "pip install --no-deps lpips" in caught.value.hint
    with pytest.raises(UserError, match=r"convnext_small-0c510722\.pth is not on this machine"):
        load_perceptual("convnext-s", "cpu", torch.float32)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"features.28.bias": None}, "missing features.28.bias"),
        ({"features.0.weight": torch.zeros(64, 3, 5, 5)}, r"features.0.weight has shape \(64, 3, 5, 5\) instead of"),
        ({"features.1.running_mean": torch.zeros(64)}, "unexpected features.1.running_mean"),
    ],
)
def test_another_vgg_is_refused_by_name(vgg16, change, says):
    tensors = {name: tensor for name, tensor in (vgg16 | change).items() if tensor is not None}
    with pytest.raises(UserError, match=says):
        lpips_from(tensors, linear())


def test_other_linear_layers_are_refused_by_name(vgg16):
    """Those for AlexNet: five, but narrower."""
    tensors = linear() | {"lin1.model.1.weight": torch.rand(1, 192, 1, 1)}
    with pytest.raises(UserError, match=r"linear layers: .*\n.*lin1\.model\.1\.weight has shape \(1, 192, 1, 1\)"):
        lpips_from(vgg16, tensors)


def test_another_convnext_is_refused(tmp_path):
    with torch.device("meta"):
        tensors = {name: torch.empty(0) for name in ConvNextSmall().state_dict() if "features.5.2" not in name}
    with pytest.raises(UserError, match=r"the weights of ConvNeXt-S: 344 tensors do not fit"):
        load_convnext_small(saved(tmp_path / "convnext.pth", tensors))


def test_a_file_that_runs_code_is_refused(tmp_path):
    path = tmp_path / "convnext.pth"
    torch.save({"features": print}, path)
    with pytest.raises(UserError, match="refused"):
        load_convnext_small(path)
