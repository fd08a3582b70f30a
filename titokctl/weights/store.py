"""Weights as values: the kind of network, its configuration and its tensors; to and from our own files.

Networks are built from them, and one network from two, without copying the weights.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import ValidationError
from torch import nn
from torch.overrides import TorchFunctionMode

from titokctl.config.base import Config
from titokctl.config.models import GeneratorConfig, TokenizerConfig, VqganConfig
from titokctl.config.recipe import model_config
from titokctl.errors import UserError
from titokctl.formats import weights_file
from titokctl.models import generator_kinds
from titokctl.models.generator import Generator
from titokctl.models.titok.tokenizer import TiTok
from titokctl.models.vqgan.vqgan import MaskGitVqgan
from titokctl.readable import first_few

CONFIGS: dict[str, type[Config]] = {"tokenizer": TokenizerConfig, "generator": GeneratorConfig, "proxy": VqganConfig}


@dataclass(frozen=True)
class Weights:
    """A network that is not built: `kind` is "tokenizer", "generator" or "proxy"; `tensors` go by our names.

    `extra` are further metadata strings of its file, such as "inputs" (JSON) and "source_sha256".
    """

    kind: str
    config: Config
    tensors: Mapping[str, torch.Tensor]
    extra: Mapping[str, str] = field(default_factory=dict)


def save_tokenizer(path: Path, tokenizer: TiTok, extra: Mapping[str, str] | None = None) -> None:
    """Write `tokenizer` as a weights file, atomically; `extra` are further metadata strings."""
    save(path, Weights("tokenizer", tokenizer.config, _tensors(tokenizer), extra or {}))


def save_generator(path: Path, generator: Generator, extra: Mapping[str, str] | None = None) -> None:
    """Write `generator` as a weights file, atomically; `extra` are further metadata strings."""
    save(path, Weights("generator", generator.config, _tensors(generator), extra or {}))


def save_proxy(path: Path, vqgan: MaskGitVqgan, extra: Mapping[str, str] | None = None) -> None:
    """Write a proxy tokenizer as a weights file, atomically; `extra` are further metadata strings."""
    save(path, Weights("proxy", vqgan.config, _tensors(vqgan), extra or {}))


def save(path: Path, weights: Weights) -> None:
    """Write `weights` as a weights file, atomically. Raises UserError when the disk is full."""
    weights_file.write(path, weights.kind, weights.config.model_dump_json(), weights.tensors, weights.extra)


def read_own(path: Path) -> Weights:
    """Read a weights file of ours, memory-mapped. Raises UserError when it is damaged, edited, or too new."""
    metadata = weights_file.read_metadata(path)
    kind = metadata.get("kind", "")
    if not weights_file.is_ours(metadata) or kind not in CONFIGS:
        raise UserError(f"{path} is not a titokctl weights file", "convert it with `titokctl convert`")
    config = config_of(kind, metadata.get("config", ""), path)
    specified = {"format", "format_version", "kind", "config", weights_file.CHECKSUM, weights_file.METADATA_CHECKSUM}
    extra = {name: text for name, text in metadata.items() if name not in specified}
    return Weights(kind, config, weights_file.read_tensors(path), extra)


def config_of(kind: str, text: str, path: Path) -> Config:
    """Return the configuration in `text`, JSON. Raises UserError, which names `path`, when it is unusable."""
    try:
        return _config_class(kind, text).model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "config"
        raise UserError(f"{path} has an unusable {kind} configuration ({where}: {first['msg']})") from error


def _config_class(kind: str, text: str) -> type[Config]:
    """Return the class of configurations; of a generator it depends on the `kind` that the configuration names."""
    if kind != "generator":
        return CONFIGS[kind]
    try:
        return model_config(json.loads(text))
    except ValueError:
        return CONFIGS[kind]  # which says what is wrong


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return dict(module.state_dict())


_MODULES: dict[str, Callable[[Any], nn.Module]] = {
    "tokenizer": TiTok,
    "generator": generator_kinds.build,
    "proxy": MaskGitVqgan,
}
_RANDOM = (
    nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_, torch.Tensor.normal_, torch.Tensor.uniform_,
)  # fmt: skip
_SHOWN = 5
_PIXEL_PARTS = ("codebook", "decoder.")
Shapes = Mapping[str, tuple[int, ...]]


class NoFirstValues(TorchFunctionMode):
    """Skip the random initial values of layers: nothing needs them, and normal_ on the meta device would import torch's
    compiler, which takes longer than loading."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _RANDOM:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def skeleton(kind: str, config: object) -> nn.Module:
    """Return the network without values, on the meta device."""
    with torch.device("meta"), NoFirstValues():
        return _MODULES[kind](config)


def build(weights: Weights, where: str, device: torch.device | str, dtype: torch.dtype | None) -> nn.Module:
    """Build the network of `weights` in eval mode on `device`.

    Its tensors become the parameters as they are, so memory-mapped ones stay mapped until they are moved or converted.

    Args:
        where: the file, for messages.
        dtype: of all floating point weights; float32 when None.

    Raises:
        UserError: missing or unexpected tensors, wrong shapes, or numbers that are not finite.
    """
    module = skeleton(weights.kind, weights.config)
    compare(shapes(weights.tensors), shapes(module.state_dict()), where)
    check_finite(weights.tensors, where)
    module.load_state_dict(weights.tensors, assign=True)
    return module.to(device, dtype or torch.float32).eval()


def with_pixel_decoder(tokenizer: TiTok, vqgan: MaskGitVqgan) -> TiTok:
    """Join a tokenizer that predicts proxy codes and the VQGAN of these codes to a tokenizer that makes pixels.

    It shares their weights and is in eval mode. Raises ValueError when the two don't fit.
    """
    config = tokenizer.config
    if config.proxy != vqgan.config:
        raise ValueError(f"expected a proxy tokenizer with {config.proxy}, got {vqgan.config}")
    pixels = {f"proxy_pixels.{k}": v for k, v in vqgan.state_dict().items() if k.startswith(_PIXEL_PARTS)}
    whole = cast(TiTok, skeleton("tokenizer", config.model_copy(update={"pixel_decoder": True})))
    whole.load_state_dict(dict(tokenizer.state_dict()) | pixels, assign=True)
    return whole.eval()


def shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shapes by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def check_finite(tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """Raise UserError when a weight is infinite or no number: such a network computes the same for every image."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel() and not tensor.is_meta:
            least, most = torch.aminmax(tensor)
            if not (torch.isfinite(least) and torch.isfinite(most)):
                count = int((~torch.isfinite(tensor)).sum())
                raise UserError(
                    f"{where}: {count:,} of the {tensor.numel():,} numbers of {name} are infinite or not a number",
                    "fetch the file again, or take an earlier checkpoint of its training",
                )


def compare(found: Shapes, expected: Shapes, where: str) -> None:
    """Raise UserError with the first few differences by name, unless `found` are exactly `expected`."""
    missing = [f"missing {name}" for name in expected if name not in found]
    unexpected = [f"unexpected {name}" for name in found if name not in expected]
    wrong = [
        f"{name} has shape {found[name]} instead of {expected[name]}"
        for name in expected
        if name in found and found[name] != expected[name]
    ]
    problems = missing + unexpected + wrong
    if not problems:
        return
    shown = first_few(problems, _SHOWN, "\n  ")
    count = "1 tensor does" if len(problems) == 1 else f"{len(problems)} tensors do"
    raise UserError(f"{where}: {count} not fit the configuration:\n  {shown}", "fetch or write the file again")
