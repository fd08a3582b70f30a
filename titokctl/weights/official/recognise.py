"""Recognition of the network in an official file, from its config.json or from names and shapes of its tensors."""

import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from titokctl.config.base import Config
from titokctl.config.models import TokenizerConfig
from titokctl.errors import UserError
from titokctl.weights.known import RELEASED
from titokctl.weights.official.config import FieldsMissing, read_config
from titokctl.weights.official.layout import official_shapes

Shapes = Mapping[str, tuple[int, ...]]


def recognise(found: Shapes, official: Mapping[str, Any] | None, model: str | None, where: str) -> tuple[str, Config]:
    """Return kind and configuration of the network with these tensors.

    Args:
        found: official names to shapes.
        official: contents of config.json, if there is one.
        model: the name of a released model, given by the user.
        where: for messages.

    Raises:
        UserError: the name is unknown, config.json describes another network, or it can't be recognised.
    """
    kind = _kind(found) or _described(official)
    if model is not None:
        kind, config = _named(model)
    elif official is not None and kind is not None:
        config = _configured(kind, official, found, where)
    elif kind is not None and (same := _same_shapes(kind, found)) is not None:
        config = same
    else:
        raise UserError(f"{where}: can't recognise the model by config.json, or by names and shapes", _ask())
    return kind, _without_pixels(config, found)


def _kind(names: Iterable[str]) -> str | None:
    """Recognise the kind by a tensor that all networks of the kind have."""
    names = set(names)
    if "latent_tokens" in names:
        return "tokenizer"
    if names & {"model.lm_head.weight", "lm_head.weight"}:
        return "generator"
    return "proxy" if "encoder.down.0.block.0.conv1.weight" in names else None


def _described(official: Mapping[str, Any] | None) -> str | None:
    """Read the kind from config.json, for files without that tensor, so that it is reported as missing."""
    sections = (official or {}).get("model")
    if not isinstance(sections, Mapping):
        return None
    if "generator" in sections:
        return "generator"
    return "tokenizer" if "vq_model" in sections else None


def _configured(kind: str, official: Mapping[str, Any], found: Shapes, where: str) -> Config:
    """Return the configuration in config.json or, if that is incomplete, of the released model with these tensors."""
    try:
        return read_config(kind, official, f"{where}: config.json")
    except FieldsMissing:
        same = _same_shapes(kind, found)
        if same is None:
            raise
        return same


def _named(model: str) -> tuple[str, Config]:
    if model not in RELEASED:
        raise UserError(f"unknown model: {model!r}", _ask())
    return RELEASED[model].kind, RELEASED[model].config


def _same_shapes(kind: str, found: Shapes) -> Config | None:
    """Return the released configuration with these tensors: equal counts, widths and code sizes."""
    for known in RELEASED.values():
        if known.kind == kind and _signature_of(known.name) == _signature(found):
            return known.config
    return None


@cache
def _signature_of(name: str) -> tuple[object, ...]:
    return _signature(official_shapes(RELEASED[name].kind, RELEASED[name].config))


_TELLING = (
    "latent_tokens", "encoder.conv_out.weight", "quantize.embedding.weight", "decoder.positional_embedding",
    "decoder.ffn.2.weight", "model.embeddings.word_embeddings.weight", "model.embeddings.position_embeddings.weight",
    "pos_embed", "embeddings.weight", "lm_head.weight", "model.lm_head.weight",
)  # fmt: skip


def _signature(shapes: Shapes) -> tuple[object, ...]:
    """Return what distinguishes models of one kind, also in a file with a missing tensor."""
    layers = {
        re.sub(r"\.(\d+)\..*", r".\1", name) for name in shapes if re.search(r"(transformer|layer|blocks)\.\d", name)
    }
    return (*(shapes.get(name) for name in _TELLING), len(layers))


def _without_pixels(config: Config, found: Shapes) -> Config:
    """Turn the pixel decoder off for files of stage 1, which have none."""
    if not isinstance(config, TokenizerConfig) or config.head != "proxy":
        return config
    has_pixels = any(name.startswith(("pixel_decoder.", "pixel_quantize.")) for name in found)
    return config.model_copy(update={"pixel_decoder": has_pixels})


def _ask() -> str:
    return f"name it with --model, one of: {', '.join(RELEASED)}"
