"""Weights with numbers that are infinite or no numbers are refused by everything that loads them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import trained

from titokctl.cli.app import run
from titokctl.config.models import VqganConfig
from titokctl.errors import UserError
from titokctl.formats import checkpoint
from titokctl.formats.atomic import read_json, write_json
from titokctl.models.convnext import ConvNextSmall
from titokctl.models.efficientnet_lite import LITE0, EfficientNetLite
from titokctl.models.inception import Inception
from titokctl.models.lpips import Lpips
from titokctl.models.vqgan.vqgan import MaskGitVqgan
from titokctl.weights.feature_networks import filled, inception_from
from titokctl.weights.load import load_generator, load_proxy, load_tokenizer
from titokctl.weights.perceptual import convnext_small_from, lpips_from
from titokctl.weights.store import save_generator, save_proxy, save_tokenizer


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", ["tokenizer", "generator"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_value_that_is_not_finite_is_named(tmp_path: Path, value: float, kind: str, dtype: torch.dtype) -> None:
    load, save = {"tokenizer": (load_tokenizer, save_tokenizer), "generator": (load_generator, save_generator)}[kind]
    runs = trained.both(tmp_path / "runs")
    path = next((runs / kind).glob("*/weights.safetensors"))
    network = load(path).to(dtype)
    name, weight = list(network.named_parameters())[-1]
    with torch.no_grad():
        weight.view(-1)[-1] = value
    save(path, network)
    with pytest.raises(UserError, match=f"1 of the .* numbers of {name} are infinite or not a number"):
        load(path)
    assert run(["sample", "-n", "2", "--runs-dir", str(runs), "-o", str(tmp_path / "out")]) == 1
    assert run(["convert", str(path), "-o", str(tmp_path / "out.safetensors")]) == 1
    assert not list(tmp_path.glob("out*"))


def test_a_feature_network_is_checked_too() -> None:
    tensors = EfficientNetLite(LITE0).state_dict()
    tensors["stem.weight"][0, 0, 0, 0] = float("nan")
    with pytest.raises(UserError, match=r"stem\.weight"):
        filled(EfficientNetLite(LITE0), tensors, "EfficientNet-Lite0")


def zeros(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(tensor.shape) for name, tensor in network.state_dict().items()}


def published_inception() -> dict[str, torch.Tensor]:
    """Weights under the published names: a convolution without bias, and a batch norm behind it."""
    with torch.device("meta"):
        network = Inception()
    found = {"fc.weight": torch.zeros(network.fc.weight.shape), "fc.bias": torch.zeros(network.fc.bias.shape)}
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            theirs, width = name[0].upper() + name[1:], module.out_channels
            found[f"{theirs}.conv.weight"] = torch.zeros(module.weight.shape)
            found |= {f"{theirs}.bn.{leaf}": torch.ones(width) for leaf in ("weight", "bias", "running_mean")}
            found[f"{theirs}.bn.running_var"] = torch.ones(width)
    return found


def published_convnext() -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        network = ConvNextSmall()
    return zeros(network)


def published_lpips() -> dict[str, torch.Tensor]:
    """Weights of VGG16, and of the linear layers under names that VGG16 doesn't have."""
    with torch.device("meta"):
        network = Lpips()
    vgg16 = {name: tensor for name, tensor in zeros(network).items() if name.startswith("features.")}
    widths = (64, 128, 256, 512, 512)
    return vgg16 | {f"lin{i}.model.1.weight": torch.zeros(1, width, 1, 1) for i, width in enumerate(widths)}


def lpips(tensors: dict[str, torch.Tensor]) -> object:
    is_linear = {name: name.startswith("lin") for name in tensors}
    return lpips_from(*({n: t for n, t in tensors.items() if is_linear[n] == linear} for linear in (False, True)))


@pytest.mark.parametrize("which", [pytest.param(0, marks=pytest.mark.slow), -1], ids=["first", "last"])
@pytest.mark.parametrize(
    ("published", "load"),
    [
        pytest.param(published_inception, inception_from, marks=pytest.mark.slow),
        (published_convnext, convnext_small_from),
        (published_lpips, lpips),
    ],
    ids=["inception", "convnext", "lpips"],
)
def test_published_networks_are_checked(published: Callable, load: Callable, which: int) -> None:
    tensors = published()
    load(tensors)
    name = list(tensors)[which]
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[0] = float("nan")
    with pytest.raises(UserError, match="are infinite or not a number"):
        load(tensors)


def test_a_vqgan_is_checked(tmp_path: Path) -> None:
    config = VqganConfig(channels=32, channel_multipliers=(1, 2), num_res_blocks=1, codebook_size=8, token_size=4)
    vqgan = MaskGitVqgan(config)
    with torch.no_grad():
        next(vqgan.parameters()).view(-1)[0] = float("inf")
    save_proxy(tmp_path / "vqgan.safetensors", vqgan)
    with pytest.raises(UserError, match="are infinite or not a number"):
        load_proxy(tmp_path / "vqgan.safetensors")


@pytest.mark.parametrize("change", [{"step": 3}, {"step": "2"}, {"step": None}])
def test_the_step_of_a_checkpoint_is_checked(tmp_path: Path, change: dict) -> None:
    for step in (1, 2):
        state = checkpoint.Checkpoint(step, {"a": torch.ones(3)}, {"step": step})
        checkpoint.save(tmp_path, state, checkpoint.Policy(keep=2))
    path = tmp_path / "step-00000002" / "state.json"
    write_json(path, read_json(path) | change)
    said: list[str] = []
    found = checkpoint.load_newest(tmp_path, said.append)
    assert found is not None
    assert found.step == 1
    assert "state.json is damaged" in said[0]
