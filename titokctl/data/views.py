"""Views: the crops of an image that are cached beside the plain one, and the record of each.

A view is cut from a square that the decoder makes (the plain crop, or a larger one), by slicing and flipping tensors.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.errors import UsageError
from titokctl.formats.token_cache import PLAIN

_TEN_CROP_SCALE = 1.1
_CORNERS = ("top-left", "top-right", "bottom-left", "bottom-right", "center")
TEN_CROP = tuple(f"ten-{corner}{flip}" for flip in ("", "-flip") for corner in _CORNERS)
# A value of --views -> the views that it stands for.
GROUPS = {"flip": ("flip",), "ten-crop": TEN_CROP} | {name: (name,) for name in TEN_CROP}


@dataclass(frozen=True)
class View:
    """One view.

    Args:
        square: the preprocessing of the square it is cut from, the plain one or a larger one.
        record: its own preprocessing, as written into the cache.
        cut: (B, 3, S', S') of that square -> (B, 3, S, S).
    """

    square: PreprocessingConfig
    record: dict[str, Any]
    cut: Callable[[torch.Tensor], torch.Tensor]


def names_of(wanted: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the views that `wanted` (names and groups) stands for. Raises UsageError for unknown ones."""
    unknown = [name for name in wanted if name not in GROUPS]
    if unknown:
        raise UsageError(f"unknown view {unknown[0]!r}", f"one of: {', '.join(GROUPS)}, or none")
    return tuple(dict.fromkeys(view for name in wanted for view in GROUPS[name]))


def view(name: str, plain: PreprocessingConfig) -> View:
    """Return the view `name`, or "plain", of images whose plain crop is `plain`."""
    if name == PLAIN:
        return View(plain, plain.model_dump(mode="json"), lambda images: images)
    if name == "flip":
        return View(plain, plain.model_dump(mode="json") | {"flip": True}, lambda images: images.flip(-1))
    size = plain.size
    square = plain.model_copy(update={"crop": "adm", "size": int(_TEN_CROP_SCALE * size)})
    position, flip = name.removeprefix("ten-").removesuffix("-flip"), name.endswith("-flip")
    record = square.model_dump(mode="json") | {"size": size, "square": square.size, "ten_crop": position, "flip": flip}
    return View(square, record, lambda images: _ten_crop(images, size, position, flip))


def _ten_crop(images: torch.Tensor, size: int, position: str, flip: bool) -> torch.Tensor:
    """Cut a corner or the center out of (B, 3, S', S'), perhaps flipped: (B, 3, S, S)."""
    free = images.shape[-1] - size
    top, left = {
        "top-left": (0, 0),
        "top-right": (0, free),
        "bottom-left": (free, 0),
        "bottom-right": (free, free),
        "center": (round(free / 2), round(free / 2)),
    }[position]
    cut = images[..., top : top + size, left : left + size]
    return cut.flip(-1) if flip else cut.contiguous()
