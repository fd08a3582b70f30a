"""Weights as values: the kind of network, its configuration and its tensors; to and from our own files."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import nn

from titokctl.config.base import Config
from titokctl.config.models import GeneratorConfig, TokenizerConfig, VqganConfig
from titokctl.config.recipe import model_config
from titokctl.errors import UserError
from titokctl.formats import weights_file
from titokctl.models.generator import Generator
from titokctl.models.titok.tokenizer import TiTok
from titokctl.models.vqgan.vqgan import MaskGitVqgan

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
