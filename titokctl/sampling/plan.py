"""The label of each image of a set, and the tiles in which images are drawn together.

Image i of a set has the label classes[i mod C], so that every part of the set holds all classes equally often (the
Inception score of consecutive splits needs that). Images are drawn in canonical tiles: tile t always holds the images
t x T to t x T + T - 1, the last one too, whose surplus rows are dropped. The kernels that a device chooses depend on
shapes; with fixed tiles, image i is the same whatever is drawn beside it or before it, and in whichever process.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from titokctl.errors import UsageError

_NAMED = 8


@dataclass(frozen=True)
class Tile:
    """Images `first` to `first + count - 1` of the set; `rows` (at least `count`) are drawn."""

    first: int
    count: int
    rows: int

    def image_indices(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """Return the index of each row's image, (rows,) int64, including the surplus rows."""
        return torch.arange(self.first, self.first + self.rows, device=device)


@dataclass(frozen=True)
class Plan:
    """`num_images` images of `classes` (None: without labels), in tiles of `tile_size`."""

    num_images: int
    classes: tuple[int, ...] | None
    tile_size: int

    def labels(self, image_indices: torch.Tensor) -> torch.Tensor | None:
        """Map (n,) int64 image indices to (n,) int64 labels on the same device; None without classes."""
        if self.classes is None:
            return None
        return _on_device(self.classes, image_indices.device)[image_indices % len(self.classes)]

    def tiles(self) -> list[Tile]:
        """Return all tiles in order."""
        return [
            Tile(first, min(self.tile_size, self.num_images - first), self.tile_size)
            for first in range(0, self.num_images, self.tile_size)
        ]


@lru_cache(maxsize=4)
def _on_device(classes: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Return the classes as a tensor, kept on the device: sending them for every tile would make the host wait."""
    return torch.tensor(classes, device=device)


def parse_classes(text: str | None) -> tuple[int | str, ...] | None:
    """Return the numbers and names in text such as "207,360" or "red-ball,3"; None for "all" and for None.

    Raises UsageError for an empty name, and for a class that is listed twice.
    """
    if text is None or text.strip() == "all":
        return None
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        raise UsageError(f"--classes {text!r} has an empty entry", "e.g. --classes 207,360 or --classes all")
    classes = tuple(int(word) if word.isascii() and word.isdigit() else word for word in words)
    _refuse_twice(classes)
    return classes


def _refuse_twice(classes: Sequence[int | str]) -> None:
    twice = [c for i, c in enumerate(classes) if c in classes[:i]]
    if twice:
        raise UsageError(
            f"--classes names {twice[0]} twice", "each class gets an equal share of the images, so name it once"
        )


def classes_of(
    wanted: Sequence[int | str] | None, num_classes: int, names: Sequence[str] = ()
) -> tuple[int, ...] | None:
    """Return the classes to draw from a generator of `num_classes`; None for a generator without classes.

    Args:
        wanted: class numbers or names; None for all classes.
        names: the names of the classes; () when unknown.

    Raises UsageError when `wanted` holds a class that the generator does not have.
    """
    if num_classes == 0:
        if wanted is not None:
            raise UsageError("--classes was given, but this generator was trained without classes", "leave it out")
        return None
    if wanted is None:
        return tuple(range(num_classes))
    numbers = tuple(_number_of(c, names) for c in wanted)
    outside = [c for c in numbers if not 0 <= c < num_classes]
    if outside:
        raise UsageError(f"class {outside[0]} is out of range: this generator has the classes 0 to {num_classes - 1}")
    if len(wanted) != len(set(numbers)) and len(wanted) == len(set(wanted)):
        _refuse_twice(numbers)  # once by its name, once by its number
    return numbers


def _number_of(given: int | str, names: Sequence[str]) -> int:
    """Return the number of a class that is given by number or name."""
    if isinstance(given, int):
        return given
    if given in names:
        return names.index(given)
    if not names:
        raise UsageError(f"this generator records no class names, such as {given!r}", "give numbers: --classes 0,1")
    near = difflib.get_close_matches(given, names, n=3)
    more = ", ..." if len(names) > _NAMED else ""
    hint = f"did you mean {' or '.join(near)}?" if near else f"its classes: {', '.join(names[:_NAMED])}{more}"
    raise UsageError(f"this generator has no class named {given!r}", hint)
