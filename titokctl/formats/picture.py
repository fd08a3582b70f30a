"""Pictures for people: grids and labelled rows of images, written as PNG."""

import functools
import math
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from titokctl.formats.atomic import atomic_path

_WHITE = 255
_TEXT_MARGIN = 6
_NO_CHARACTER = "\uffff"
_LETTER = re.compile(r"LATIN (SMALL|CAPITAL) LETTER ([A-Z]{1,2})( WITH .*)?")


def grid(images: np.ndarray, columns: int, pad: int = 2) -> np.ndarray:
    """Arrange images in rows of `columns`, on white, left to right and top to bottom.

    Args:
        images: (n, H, W, 3) uint8, n >= 1.
        columns: images in a row, at least 1.
        pad: white pixels between images and around all.

    Returns:
        (h, w, 3) uint8.

    Raises:
        ValueError: for other shapes or types.
    """
    _check(images)
    if columns < 1 or pad < 0:
        raise ValueError(f"columns must be at least 1 and pad at least 0, not {columns} and {pad}")
    n, height, width, _ = images.shape
    rows = -(-n // columns)
    out = np.full((rows * (height + pad) + pad, columns * (width + pad) + pad, 3), _WHITE, np.uint8)
    for i, image in enumerate(images):
        y, x = (i // columns) * (height + pad) + pad, (i % columns) * (width + pad) + pad
        out[y : y + height, x : x + width] = image
    return out


def labelled_rows(rows: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
    """Draw rows of images with a text left of each; rows may differ in length and image size.

    Args:
        rows: (text, images (n, H, W, 3) uint8) from top to bottom, at least one.

    Returns:
        (h, w, 3) uint8, black text on white.
    """
    if not rows:
        raise ValueError("no rows to draw")
    strips = [grid(images, len(images)) for _, images in rows]
    texts = [_text(label, max_height=strip.shape[0]) for (label, _), strip in zip(rows, strips, strict=True)]
    left = max(text.shape[1] for text in texts)
    out = np.full((sum(len(s) for s in strips), left + max(s.shape[1] for s in strips), 3), _WHITE, np.uint8)
    y = 0
    for text, strip in zip(texts, strips, strict=True):
        top = y + (len(strip) - len(text)) // 2
        out[top : top + len(text), : text.shape[1]] = text
        out[y : y + len(strip), left : left + strip.shape[1]] = strip
        y += len(strip)
    return out


def save_grid(path: Path, images: np.ndarray, columns: int | None = None) -> None:
    """Write images (n, H, W, 3) uint8 as one PNG, in rows of `columns`; None makes the grid as square as it gets."""
    save_png(path, grid(images, columns or math.isqrt(max(len(images), 1) - 1) + 1))


def save_class_grid(path: Path, images: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> None:
    """Write images (n, H, W, 3) uint8 as one PNG with a row for each class and its name.

    Where most classes have a single image, or labels are missing, the images come in order, as in `save_grid`.

    Args:
        labels: (n,) integers, -1 for none.
        class_names: names by label; () when unknown, and then the rows show numbers.
    """
    classes = np.unique(labels)
    if classes[0] < 0 or len(classes) * 2 > len(images):
        save_grid(path, images)
        return
    known = dict(enumerate(map(_drawable, class_names)))
    names = [known.get(c) or f"class {c}" for c in classes.tolist()]
    rows = zip(names, (images[labels == c] for c in classes), strict=True)
    save_png(path, labelled_rows(list(rows)))


def save_png(path: Path, picture: np.ndarray) -> None:
    """Write a picture (h, w, 3) uint8 as PNG, atomically."""
    _check(picture[None])
    with atomic_path(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG", optimize=True)


def _drawable(text: str) -> str:
    """Return the text with what Pillow's own font can draw: letters without their accents, and ? for other characters.

    "" if not one of its letters can be drawn.
    """
    found = "".join(map(_drawn_as, unicodedata.normalize("NFC", text)))
    return found if any(c.isalnum() for c in found) else ""


@functools.cache
def _drawn_as(character: str) -> str:
    decomposed = unicodedata.normalize("NFKD", character)
    letter = _LETTER.fullmatch(unicodedata.name(character, ""))
    without = letter[2].lower() if letter and letter[1] == "SMALL" else letter[2] if letter else ""
    candidates = (
        character,
        "".join(c for c in decomposed if not unicodedata.combining(c)),
        without,
        character.casefold(),
    )
    return next((c for c in candidates if c and all(map(_has_glyph, c))), "?")


@functools.cache
def _has_glyph(character: str) -> bool:
    font = ImageFont.load_default(size=16)
    drawn, missing = (font.getmask(c) for c in (character, _NO_CHARACTER))
    return (drawn.size, bytes(drawn)) != (missing.size, bytes(missing))


def _text(label: str, max_height: int) -> np.ndarray:
    font, label = ImageFont.load_default(size=max(8, min(16, max_height - 2))), _drawable(label) or label
    left, top, right, bottom = font.getbbox(label)
    width, height = int(right - left) + 2 * _TEXT_MARGIN, min(int(bottom - top) + 2, max_height)
    canvas = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(canvas).text((_TEXT_MARGIN - left, 1 - top), label, fill="black", font=font)
    return np.asarray(canvas)


def _check(images: np.ndarray) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not images.size:
        raise ValueError(f"expected images (n, H, W, 3) uint8, not {images.shape} {images.dtype}")
