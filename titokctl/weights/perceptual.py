"""Perceptual losses from published weight files, by their names in recipes.

VGG16 and ConvNeXt-S are torchvision's files, LPIPS' linear layers those of its authors.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from titokctl.models.convnext import ConvNextSmall
from titokctl.models.lpips import WIDTHS, Lpips
from titokctl.models.perceptual import ConvNextPerceptual, Lite0Perceptual, LpipsPerceptual
from titokctl.weights.feature_networks import StateDict, filled, load_lite0
from titokctl.weights.network_files import CONVNEXT_SMALL, LPIPS_LINEAR, VGG16, find
from titokctl.weights.pickled import read_pickled
from titokctl.weights.store import NoFirstValues, compare, shapes

_CLASSIFIER = "classifier."  # of VGG16; not needed for LPIPS, which compares feature maps


def load_perceptual(name: str, device: torch.device | str, dtype: torch.dtype) -> nn.Module:
    """Load the loss (made, target) -> scalar that recipes call lpips, convnext-s or lite0; see `models.perceptual`.

    Args:
        dtype: of the network's weights and arithmetic; the loss is float32.

    Raises:
        UserError: its weights are missing, damaged, or those of another network.
    """
    loss = _LOSSES[name]().to(device, dtype)
    return loss.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # typed wrongly in torch


def load_lpips(vgg16: Path | None = None, linear: Path | None = None, fetch: bool = True) -> Lpips:
    """Load LPIPS in eval mode, float32, frozen; `network_files.find` finds files that are not given.

    Raises UserError when a file is missing, damaged, or one of another network.
    """
    paths = find(VGG16, vgg16, fetch=fetch), find(LPIPS_LINEAR, linear, fetch=fetch)
    return lpips_from(*(read_pickled(path) for path in paths))


def load_convnext_small(path: Path | None = None) -> ConvNextSmall:
    """Load ConvNeXt-S in eval mode, float32, frozen; `network_files.find` finds a file that is not given.

    Raises UserError when the file is missing, damaged, or one of another network.
    """
    return convnext_small_from(read_pickled(find(CONVNEXT_SMALL, path)))


def lpips_from(vgg16: StateDict, linear: StateDict) -> Lpips:
    """Make LPIPS from the tensors of VGG16 and of the linear layers. Raises UserError if they don't fit."""
    names = {f"lin{i}.model.1.weight": (1, width, 1, 1) for i, width in enumerate(WIDTHS)}
    compare(shapes(linear), names, "the weights of LPIPS' linear layers")
    with NoFirstValues():
        network = Lpips()
    maps = {name: tensor for name, tensor in vgg16.items() if not name.startswith(_CLASSIFIER)}
    weights = {f"channel_weights.{i}": linear[name].flatten() for i, name in enumerate(names)}
    return filled(network, maps | weights, "VGG16")


def convnext_small_from(published: StateDict) -> ConvNextSmall:
    """Make ConvNeXt-S from torchvision's tensors. Raises UserError if they don't fit."""
    with NoFirstValues():
        network = ConvNextSmall()
    return filled(network, published, "ConvNeXt-S")


_LOSSES: dict[str, Callable[[], nn.Module]] = {
    "lpips": lambda: LpipsPerceptual(load_lpips()),
    "convnext-s": lambda: ConvNextPerceptual(load_convnext_small()),
    "lite0": lambda: Lite0Perceptual(load_lite0()),
}
