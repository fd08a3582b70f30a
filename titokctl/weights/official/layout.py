"""Conversion of official tensors to ours and back: names, shapes, pieces; values are views where possible."""

from collections.abc import Mapping
from typing import Any

import torch

from titokctl.errors import UserError
from titokctl.readable import first_few
from titokctl.weights.official.names import Official, official_layout
from titokctl.weights.store import compare, shapes, skeleton

# Saved by some versions of the library of the official ViT; contains 0, 1, 2, ...
_IGNORED = ("embeddings.position_ids",)
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_SHOWN = 5


def from_official(kind: str, config: Any, tensors: Mapping[str, torch.Tensor], where: str) -> dict[str, torch.Tensor]:
    """Convert official `tensors` to our names and shapes.

    Raises UserError, which lists tensors by their official names, when some are missing, unexpected, of another shape,
    or not plain floating point tensors.
    """
    ours = shapes(skeleton(kind, config).state_dict())
    layout = official_layout(kind, config, ours)
    found = {name: t for name, t in tensors.items() if not name.endswith(_IGNORED)}
    compare(shapes(found), _expected(layout), where)
    _check_types(found, where)
    return {name: _joined([found[n] for n in place.names]).reshape(ours[name]) for name, place in layout.items()}


def to_official(kind: str, config: Any, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Convert our `tensors` to the official names and shapes."""
    layout = official_layout(kind, config, shapes(tensors))
    return {
        name: part.reshape(place.shape)
        for ours, place in layout.items()
        for name, part in zip(place.names, tensors[ours].chunk(len(place.names)), strict=True)
    }


def official_shapes(kind: str, config: Any) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of a network in the official layout."""
    return _expected(official_layout(kind, config, shapes(skeleton(kind, config).state_dict())))


def _check_types(tensors: Mapping[str, torch.Tensor], where: str) -> None:
    wrong = [
        f"{name} ({tensor.dtype}{'' if tensor.layout == torch.strided else f', {tensor.layout}'})"
        for name, tensor in tensors.items()
        if tensor.dtype not in _DTYPES or tensor.layout != torch.strided
    ]
    if wrong:
        message = f"{where}: not all tensors are plain floating point tensors: {first_few(wrong, _SHOWN)}"
        raise UserError(message, "expected float64, float32, float16 or bfloat16")


def _expected(layout: Mapping[str, Official]) -> dict[str, tuple[int, ...]]:
    return {name: place.shape for place in layout.values() for name in place.names}


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
