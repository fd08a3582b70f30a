"""Feature networks with published weights.

Batch norms are folded into the convolutions before them, in float64, so that the networks in `models` are plain
convolutions.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

from titokctl.errors import UserError
from titokctl.models import efficientnet_lite, inception
from titokctl.models.efficientnet_lite import EfficientNetLite, Variant
from titokctl.models.inception import Inception
from titokctl.weights.network_files import INCEPTION, LITE0, LITE2, find
from titokctl.weights.pickled import read_pickled
from titokctl.weights.store import check_finite, compare, shapes

LITE0_SHA256_START, LITE2_SHA256_START = LITE0.sha256, LITE2.sha256
INCEPTION_SHA256_START = INCEPTION.sha256[:8]

N = TypeVar("N", bound=nn.Module)
StateDict = dict[str, Tensor]


def find_lite0() -> Path:
    """Return the file of EfficientNet-Lite0, which the demo extra installs. Raises UserError if it is missing."""
    return find(LITE0)


def load_lite0(path: Path | None = None) -> EfficientNetLite:
    """Return the network in eval mode, float32, from `path` or the installed package."""
    return lite_from(read_pickled(path or find_lite0()), efficientnet_lite.LITE0)


def load_lite2(path: Path | None = None) -> EfficientNetLite:
    """Return the network in eval mode, float32, from `path` or the installed package. Raises UserError without it."""
    return lite_from(read_pickled(path or find(LITE2)), efficientnet_lite.LITE2)


def lite_from(published: StateDict, variant: Variant) -> EfficientNetLite:
    """Return the network with weights under the names of the published file. Raises UserError if they don't fit."""
    network = EfficientNetLite(variant)
    eps = efficientnet_lite.BATCH_NORM_EPS
    named: StateDict = {}
    try:
        for ours, conv, norm in _lite_layers(network):
            named |= fold_batch_norm(published, ours, conv, norm, eps)
        named |= {f"classifier.{leaf}": published[f"_fc.{leaf}"] for leaf in ("weight", "bias")}
    except KeyError as error:
        raise UserError(f"these are not weights of {variant.name}: {error} is missing") from error
    return filled(network, named, variant.name)


def load_inception(path: Path) -> Inception:
    """Return the network in eval mode, float32, from the file at `path`."""
    return inception_from(read_pickled(path))


def inception_from(published: StateDict) -> Inception:
    """Return the network with weights under the published names. Raises UserError if they don't fit."""
    network = Inception()
    named: StateDict = {}
    try:
        for ours, module in network.named_modules():
            if isinstance(module, nn.Conv2d):
                theirs = ours[0].upper() + ours[1:]
                named |= fold_batch_norm(published, ours, f"{theirs}.conv", f"{theirs}.bn", inception.BATCH_NORM_EPS)
        named |= {name: published[name].float() for name in ("fc.weight", "fc.bias")}
    except KeyError as error:
        raise UserError(f"these are not the weights of FID's Inception: {error} is missing") from error
    return filled(network, named, "FID's Inception")


def fold_batch_norm(published: StateDict, ours: str, conv: str, norm: str, eps: float) -> StateDict:
    """Return a convolution without bias and the batch norm behind it as one convolution with bias, named `ours`."""
    weight = published[f"{conv}.weight"].double()
    scale = published[f"{norm}.weight"].double() / (published[f"{norm}.running_var"].double() + eps).sqrt()
    shift = published[f"{norm}.bias"].double() - published[f"{norm}.running_mean"].double() * scale
    return {f"{ours}.weight": (weight * scale[:, None, None, None]).float(), f"{ours}.bias": shift.float()}


def _lite_layers(network: EfficientNetLite) -> Iterator[tuple[str, str, str]]:
    """Yield our name of every convolution, and the published names of it and of its batch norm."""
    yield "stem", "_conv_stem", "_bn0"
    for i, block in enumerate(network.blocks):
        if block.expand is not None:
            yield f"blocks.{i}.expand", f"_blocks.{i}._expand_conv", f"_blocks.{i}._bn0"
        yield f"blocks.{i}.depthwise", f"_blocks.{i}._depthwise_conv", f"_blocks.{i}._bn1"
        yield f"blocks.{i}.project", f"_blocks.{i}._project_conv", f"_blocks.{i}._bn2"
    yield "head", "_conv_head", "_bn1"


def filled(network: N, tensors: StateDict, name: str) -> N:
    """Load weights into the network; return it frozen and in eval mode. Raises UserError if they don't fit."""
    compare(shapes(tensors), shapes(network.state_dict()), f"the weights of {name}")
    check_finite(tensors, f"the weights of {name}")
    network.load_state_dict(tensors)
    return network.eval().requires_grad_(False)
