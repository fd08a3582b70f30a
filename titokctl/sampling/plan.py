"""The label of each image of a set, and the tiles in which images are drawn together.

Image i of a set has the label classes[i mod C], so that every part of the set holds all classes equally often (the
Inception score of consecutive splits needs that). Images are drawn in canonical tiles: tile t always holds the images
t x T to t x T + T - 1, the last one too, whose surplus rows are dropped. The kernels that a device chooses depend on
shapes; with fixed tiles, image i is the same whatever is drawn beside it or before it, and in whichever process.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch

from titokctl.errors import UsageError

# What can be asked for: class numbers and names, "all", or "none" for images without a class; None for the default.
Classes = Sequence[int | str] | Literal["all", "none"] | None
_NAMED = 8
_RANGE = re.compile(r"(\d{1,9})-(\d{1,9})")
_LONGEST_RANGE = 1_000_000


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


def parse_classes(text: str | None) -> Classes:
    """Return the classes in text such as "207,360", "0-9,20", "red-ball,3", "all" or "none"; None for None.

    Raises UsageError for an empty name, a range that runs backwards, and a class that is listed twice.
    """
    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    if words == ["all"]:
        return "all"
    if words == ["none"]:
        return "none"
    if not all(words):
        raise UsageError(f"--classes {text!r} has an empty entry", "e.g. --classes 207,360 or --classes all")
    classes = tuple(c for word in words for c in _parsed(word))
    _refuse_twice(classes)
    return classes


def _parsed(word: str) -> Sequence[int | str]:
    """Return the numbers of a number or a range, or the name."""
    if word.isascii() and word.isdigit():
        return (int(word),)
    span = _RANGE.fullmatch(word)
    if span is None or not word.isascii():
        return (word,)
    first, last = int(span[1]), int(span[2])
    if not 0 <= last - first < _LONGEST_RANGE:
        raise UsageError(f"--classes {word} is not a range of classes", "both ends belong to it: --classes 0-9")
    return range(first, last + 1)


def _refuse_twice(classes: Sequence[int | str]) -> None:
    seen: set[int | str] = set()
    for c in classes:
        if c in seen:
            raise UsageError(
                f"--classes names {c} twice", "each class gets an equal share of the images, so name it once"
            )
        seen.add(c)


def classes_of(
    wanted: Classes, num_classes: int, names: Sequence[str] = (), rows: Sequence[int] = ()
) -> tuple[int, ...] | None:
    """Return the classes to draw from a generator of `num_classes`; None to draw without classes.

    Args:
        wanted: class numbers or names, "all", "none", or None for all classes that were learnt.
        names: the names of the classes; () when unknown.
        rows: how many rows of each class the generator was trained on; () when unknown.

    Raises UsageError when `wanted` holds a class that the generator does not have, or a name that two classes have.
    """
    if wanted == "none" or (num_classes == 0 and wanted is None):
        return None
    if num_classes == 0:
        raise UsageError("--classes was given, but this generator was trained without classes", "leave it out")
    if wanted is None or isinstance(wanted, str):
        missing = set(unlearnt(range(num_classes), rows)) if wanted is None else set()
        return tuple(c for c in range(num_classes) if c not in missing)
    numbers = tuple(_number_of(c, names) for c in wanted)
    outside = [c for c in numbers if not 0 <= c < num_classes]
    if outside:
        raise UsageError(
            f"class {outside[0]} is out of range: this generator has the classes 0 to {num_classes - 1}",
            f"--classes 0-{num_classes - 1} draws them all",
        )
    if len(wanted) != len(set(numbers)) and len(wanted) == len(set(wanted)):
        _refuse_twice(numbers)  # once by its name, once by its number
    return numbers


def unlearnt(classes: Sequence[int], rows: Sequence[int]) -> list[int]:
    """Return those of `classes` that had no rows in training; [] when `rows`, a count for each class, is ()."""
    return [c for c in classes if c >= len(rows) or not rows[c]] if len(rows) else []


def _number_of(given: int | str, names: Sequence[str]) -> int:
    """Return the number of a class that is given by number or name."""
    if isinstance(given, int):
        return given
    found = [c for c, name in enumerate(names) if name == given]
    if len(found) > 1:
        raise UsageError(f"{len(found)} classes are named {given!r}", f"give a number: {' or '.join(map(str, found))}")
    if found:
        return found[0]
    if not names:
        raise UsageError(f"this generator records no class names, such as {given!r}", "give numbers: --classes 0,1")
    near = difflib.get_close_matches(given, names, n=3)
    more = ", ..." if len(names) > _NAMED else ""
    hint = f"did you mean {' or '.join(near)}?" if near else f"its classes: {', '.join(names[:_NAMED])}{more}"
    raise UsageError(f"this generator has no class named {given!r}", hint)
