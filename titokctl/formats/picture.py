"""Pictures for people: grids and labelled rows of images, written as PNG."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from titokctl.formats.atomic import atomic_path

_WHITE = 255
_TEXT_MARGIN = 6


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

    Where most classes have a single image, or there are no labels, the images come in order, as in `save_grid`.

    Args:
        labels: (n,) integers, -1 for none.
        class_names: names by label; () when unknown, and then the rows show numbers.
    """
    classes = np.unique(labels)
    if classes[0] < 0 or len(classes) * 2 > len(images):
        save_grid(path, images)
        return
    names = [class_names[c] if c < len(class_names) else f"class {c}" for c in classes.tolist()]
    rows = zip(names, (images[labels == c] for c in classes), strict=True)
    save_png(path, labelled_rows(list(rows)))


def save_png(path: Path, picture: np.ndarray) -> None:
    """Write a picture (h, w, 3) uint8 as PNG, atomically."""
    _check(picture[None])
    with atomic_path(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG", optimize=True)


def _text(label: str, max_height: int) -> np.ndarray:
    font = ImageFont.load_default(size=max(8, min(16, max_height - 2)))
    left, top, right, bottom = font.getbbox(label)
    width, height = int(right - left) + 2 * _TEXT_MARGIN, min(int(bottom - top) + 2, max_height)
    canvas = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(canvas).text((_TEXT_MARGIN - left, 1 - top), label, fill="black", font=font)
    return np.asarray(canvas)


def _check(images: np.ndarray) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not images.size:
        raise ValueError(f"expected images (n, H, W, 3) uint8, not {images.shape} {images.dtype}")
