"""Views: which crops of an image are cached beside the plain one, and what is written about each.

A view is made from a square that the decoder cuts (the plain crop, or a larger one), by cutting and flipping tensors.
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
# What --views takes -> the views that are made.
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
    """The names of the views that `wanted` (names and groups) stands for. Raises UsageError for one nobody knows."""
    unknown = [name for name in wanted if name not in GROUPS]
    if unknown:
        raise UsageError(f"there is no view named {unknown[0]!r}", f"one of: {', '.join(GROUPS)}, or none")
    return tuple(dict.fromkeys(view for name in wanted for view in GROUPS[name]))


def view(name: str, plain: PreprocessingConfig) -> View:
    """The view `name`, or "plain", of images whose plain crop is `plain`."""
    if name == PLAIN:
        return View(plain, plain.model_dump(mode="json"), lambda images: images)
    if name == "flip":
        return View(plain, plain.model_dump(mode="json") | {"flip": True}, lambda images: images.flip(-1))
    size = plain.size
    square = plain.model_copy(update={"crop": "adm", "size": int(_TEN_CROP_SCALE * size)})
    place, flip = name.removeprefix("ten-").removesuffix("-flip"), name.endswith("-flip")
    record = square.model_dump(mode="json") | {"size": size, "square": square.size, "ten_crop": place, "flip": flip}
    return View(square, record, lambda images: _ten_crop(images, size, place, flip))


def _ten_crop(images: torch.Tensor, size: int, place: str, flip: bool) -> torch.Tensor:
    """(B, 3, S', S') -> (B, 3, S, S): a corner or the middle, and its mirror image."""
    free = images.shape[-1] - size
    top, left = {
        "top-left": (0, 0),
        "top-right": (0, free),
        "bottom-left": (free, 0),
        "bottom-right": (free, free),
        "center": (round(free / 2), round(free / 2)),
    }[place]
    cut = images[..., top : top + size, left : left + size]
    return cut.flip(-1) if flip else cut.contiguous()
