"""Feature networks, by whose features sets of images are compared, found by name.

A network outside this package joins through an entry point of the group "titokctl.features", whose object is a
factory `(options: ExtractorOptions) -> Extractor`.

Inception with another program's resize is a network of its own, "inception-pytorch" or "inception-clean": its features
are others, so are its statistics and kept results, and `fid` stays the name of the distance by ADM's protocol.

Letters: B batch, H and W height and width, D feature width.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titokctl.config import registry
from titokctl.context import Context
from titokctl.errors import UsageError
from titokctl.models import efficientnet_lite, inception
from titokctl.models.device import default_batch_size
from titokctl.models.efficientnet_lite import EfficientNetLite
from titokctl.models.inception import Inception, Resize
from titokctl.progress import Progress
from titokctl.weights.feature_networks import (
    INCEPTION_SHA256_START,
    LITE0_SHA256_START,
    LITE2_SHA256_START,
    find_lite0,
    load_inception,
    load_lite0,
    load_lite2,
)
from titokctl.weights.network_files import INCEPTION, find

ENTRY_POINT_GROUP = "titokctl.features"
# Names of Inception by the way in which images are resized for it.
INCEPTIONS: dict[Resize, str] = {"tf1": "inception", "pytorch": "inception-pytorch", "clean": "inception-clean"}
_RESIZES: dict[Resize, str] = {
    "tf1": "bilinear to 299 as TensorFlow 1 (no half-pixel centres, no antialias)",
    "pytorch": "bilinear to 299 as pytorch-fid (half-pixel centres, no antialias)",
    "clean": "bicubic to 299 as clean-fid (antialiased, in float)",
}
FeaturePrecision = Literal["float32", "tf32", "bf16"]
_DTYPES = {"float32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class ExtractorOptions:
    """The arguments of a factory.

    Args:
        device: where the network runs.
        weights: a file to read instead of the usual place.
        precision: "tf32" (on a GPU) and "bf16" trade exactness for speed.
        progress: shows a download.
        fetch: download weights that are not on this machine.
    """

    device: str = "cpu"
    weights: Path | None = None
    precision: FeaturePrecision = "float32"
    progress: Progress | None = None
    fetch: bool = True


@dataclass(frozen=True)
class Extractor:
    """A feature network, and what a record says of it.

    Args:
        name: "inception", "inception-pytorch", "inception-clean", "lite0", "lite2", or an entry point's name.
        network: images (B, H, W, 3) uint8 on `device` -> {output name: (B, D) float32}; "pool" is always there.
        widths: D of every output.
        batch_size: images a call takes; the last batch is padded to it, so that no feature depends on its neighbours.
        device: where the network lives.
        description: for the record: weights and their SHA-256, resize, precision.
        arithmetic: the precision of what is computed on float32 numbers.
    """

    name: str
    network: Callable[[Tensor], dict[str, Tensor]]
    widths: dict[str, int]
    batch_size: int
    device: str
    description: dict[str, Any] = field(default_factory=dict)
    arithmetic: Literal["float32", "tf32"] = "float32"

    @property
    def is_fid(self) -> bool:
        """True for the one network whose distance may be called FID."""
        return self.name == "inception"

    def metric_name(self, metric: str) -> str:
        """Return the name of a number: fid, kid_deviation for Inception; fd-lite0, kid-lite0_deviation for lite0."""
        if self.is_fid:
            return metric
        first, _, rest = metric.partition("_")
        return f"{'fd' if first == 'fid' else first}-{self.name}" + (f"_{rest}" if rest else "")


@dataclass(frozen=True)
class FeatureNetwork:
    """The feature network that a request names.

    Args:
        name: "inception", "inception-pytorch", "inception-clean", "lite0", "lite2", or an entry point's name.
        weights: a file to read instead of the usual place, for Inception.
        fast: run it in bf16; results record it.
        tf32: run it in TF32, on a GPU; results record it.
    """

    name: str = "inception"
    weights: Path | None = None
    fast: bool = False
    tf32: bool = False

    def __post_init__(self) -> None:
        if self.weights is not None and self.name not in INCEPTIONS.values():
            raise UsageError(f"--inception-weights was given with --features {self.name}", "leave one of them out")
        if self.fast and self.tf32:
            raise UsageError("--fast and --tf32 are mutually exclusive", "give one of them: --fast is bf16")

    @property
    def precision(self) -> FeaturePrecision:
        """The precision in which it runs."""
        return "bf16" if self.fast else "tf32" if self.tf32 else "float32"

    def open(self, context: Context, fetch: bool = True) -> Extractor:
        """Return the extractor, on every process of the group; rank 0 fetches missing weights for all.

        Args:
            fetch: download weights that are not on this machine; a plan passes False.

        Raises UsageError for an unknown name or TF32 without a GPU that has it, and UserError when its weights are not
        here and can't be fetched.
        """
        if self.tf32 and torch.device(context.device).type != "cuda":
            raise UsageError(f"--tf32 is for GPUs of NVIDIA, not for {context.device}", "leave it out, or give --fast")
        options = ExtractorOptions(context.device, self.weights, self.precision, context.progress, fetch)
        with context.group.main_first():
            return open_extractor(self.name, options)

    def called(self, name: str) -> "FeatureNetwork":
        """Return the same with another name; weights are only those of the network they were named for."""
        return self if name == self.name else replace(self, name=name, weights=None)


def open_extractor(name: str, options: ExtractorOptions | None = None) -> Extractor:
    """Return the extractor `name`. Raises UsageError for an unknown name, and UserError if its weights are missing."""
    options = options or ExtractorOptions()
    factory: Callable[[ExtractorOptions], Extractor] = registry.find(
        "feature network", name, _BUILT_IN, ENTRY_POINT_GROUP, UsageError
    )
    return factory(options)


def _lite0(options: ExtractorOptions) -> Extractor:
    return _lite(load_lite0(options.weights or find_lite0()), "lite0", LITE0_SHA256_START, options)


def _lite2(options: ExtractorOptions) -> Extractor:
    return _lite(load_lite2(options.weights), "lite2", LITE2_SHA256_START, options)


def _lite(
    network: EfficientNetLite, name: Literal["lite0", "lite2"], sha256_start: str, options: ExtractorOptions
) -> Extractor:
    size = network.variant.input_size

    def features(images: Tensor) -> dict[str, Tensor]:
        x = resized(images, size).div_(255)  # (B, 3, size, size)
        return {"pool": network.features(x.contiguous(memory_format=torch.channels_last))}

    about = {
        "network": f"{network.variant.name}, 1,280 pooled features",
        "weights_sha256_start": sha256_start,
        "resize": f"bilinear to {size}, antialiased when shrinking",
    }
    return _ready(network, options, name, features, {"pool": efficientnet_lite.FEATURE_WIDTH}, about)


def _inception(options: ExtractorOptions, resize: Resize = "tf1") -> Extractor:
    path = find(INCEPTION, options.weights, options.progress, options.fetch)
    return inception_extractor(load_inception(path), options, resize)


def inception_extractor(network: Inception, options: ExtractorOptions, resize: Resize = "tf1") -> Extractor:
    """Return the extractor around an Inception that was loaded already."""

    def features(images: Tensor) -> dict[str, Tensor]:
        out = network(images.permute(0, 3, 1, 2).float(), resize)
        return {"pool": out.pool_2048, "spatial": out.spatial, "logits": out.logits_unbiased}

    widths = {"pool": inception.POOL_WIDTH, "spatial": inception.SPATIAL_WIDTH, "logits": inception.NUM_CLASSES}
    about = {
        "network": "Inception (TensorFlow 2015), pool3 of 2,048 features",
        "weights_sha256_start": INCEPTION_SHA256_START,
        "resize": _RESIZES[resize],
    }
    return _ready(network, options, INCEPTIONS[resize], features, widths, about)


def _ready(
    network: nn.Module,
    options: ExtractorOptions,
    name: str,
    features: Callable[[Tensor], dict[str, Tensor]],
    widths: dict[str, int],
    about: dict[str, str],
) -> Extractor:
    """Move `network` to the device and precision of the options; return the extractor of `features`, which calls it."""
    network.to(options.device, _DTYPES[options.precision])
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # typed wrongly in torch
    batched: Any = "inception" if name in INCEPTIONS.values() else name
    batch_size, about = default_batch_size(options.device, batched), about | {"precision": options.precision}
    arithmetic: Literal["float32", "tf32"] = "tf32" if options.precision == "tf32" else "float32"
    return Extractor(name, features, widths, batch_size, options.device, about, arithmetic)


def resized(images: Tensor, size: int) -> Tensor:
    """Return (B, H, W, 3) uint8 as (B, 3, size, size) float32 in [0, 255], bilinear, antialiased when shrinking."""
    x = images.permute(0, 3, 1, 2).float()
    if x.shape[2:] == (size, size):
        return x
    shrinks = max(x.shape[2:]) > size
    return F.interpolate(x, (size, size), mode="bilinear", align_corners=False, antialias=shrinks)


_BUILT_IN: dict[str, Callable[[ExtractorOptions], Extractor]] = {
    **{name: partial(_inception, resize=resize) for resize, name in INCEPTIONS.items()},
    "lite0": _lite0,
    "lite2": _lite2,
}
