"""Official tensors to ours and back: names, shapes, pieces; values are views wherever that is possible."""

from collections.abc import Mapping
from typing import Any

import torch

from titokctl.errors import UserError
from titokctl.weights.build import compare, shapes, skeleton
from titokctl.weights.official.names import Official, official_layout

# Saved by some versions of the library that the official ViT comes from; it holds 0, 1, 2, ...
_IGNORED = ("embeddings.position_ids",)
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_SHOWN = 5


def from_official(kind: str, config: Any, tensors: Mapping[str, torch.Tensor], where: str) -> dict[str, torch.Tensor]:
    """Official `tensors` by our names and in our shapes.

    Raises UserError that lists missing, unexpected and wrong tensors by their official names, or those that are no
    plain floating point ones.
    """
    ours = shapes(skeleton(kind, config).state_dict())
    layout = official_layout(kind, config, ours)
    found = {name: t for name, t in tensors.items() if not name.endswith(_IGNORED)}
    compare(shapes(found), _expected(layout), where)
    _check_types(found, where)
    return {name: _joined([found[n] for n in place.names]).reshape(ours[name]) for name, place in layout.items()}


def to_official(kind: str, config: Any, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our `tensors` by their official names and in their official shapes."""
    layout = official_layout(kind, config, shapes(tensors))
    return {
        name: part.reshape(place.shape)
        for ours, place in layout.items()
        for name, part in zip(place.names, tensors[ours].chunk(len(place.names)), strict=True)
    }


def official_shapes(kind: str, config: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a network in the official layout."""
    return _expected(official_layout(kind, config, shapes(skeleton(kind, config).state_dict())))


def _check_types(tensors: Mapping[str, torch.Tensor], where: str) -> None:
    wrong = [
        f"{name} ({tensor.dtype}{'' if tensor.layout == torch.strided else f', {tensor.layout}'})"
        for name, tensor in tensors.items()
        if tensor.dtype not in _DTYPES or tensor.layout != torch.strided
    ]
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        message = f"{where}: not all tensors are plain floating point ones: {', '.join(wrong[:_SHOWN])}{more}"
        raise UserError(message, "weights are expected as float64, float32, float16 or bfloat16")


def _expected(layout: Mapping[str, Official]) -> dict[str, tuple[int, ...]]:
    return {name: place.shape for place in layout.values() for name in place.names}


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
