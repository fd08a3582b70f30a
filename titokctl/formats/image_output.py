"""The forms in which a set of images is written: one .npz, a folder of files, or WebDataset shards.

Specification:
    npz     `arr_0` (N, H, W, 3) uint8 (`npz_stream`)
    png     a folder of PNG files `<index>.png`: the index in decimal with leading zeros (six digits, more when there
            are more than a million images), counted from 0
    webp    the same in lossless WebP
    wds     a folder of shards with index.json (`shard_set`): `images-000000.tar`, ..., 1,000 PNG files each with the
            same names, and the class of each where it has one
    none    nothing: the ids are enough to make the images
"""

import os
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from titokctl.formats.atomic import flush_entry
from titokctl.formats.npz_stream import NpzArray
from titokctl.formats.shard_set import ShardInfo, ShardSample, shard_name, write_set_index, write_shard

ImageFormat = Literal["npz", "png", "webp", "wds", "none"]
# The name of what holds the images.
PRODUCTS = {"npz": "images.npz", "png": "images", "webp": "images", "wds": "shards"}
FILE_TYPES = {"png": "png", "webp": "webp", "wds": "png"}
IMAGES_A_SHARD = 1000
_STAGED = "staged"
Encode = Callable[[np.ndarray], bytes]


class ImageOutput(Protocol):
    """Images on their way to the disk: `NpzArray`, `ImageFiles`, `ImageShards`."""

    def write(self, first: int, rows: np.ndarray) -> int:
        """Images (n, H, W, 3) uint8 from index `first` on, from any thread. Returns the CRC-32 of their pixels."""

    def flush(self) -> None:
        """Wait until what was written is on the disk."""

    def finish(self, pieces: list[tuple[int, int]]) -> None:
        """Complete the product; `pieces` are (number of images, CRC-32) in the order of the images."""

    def close(self) -> None:
        """Close files, finished or not."""


def index_name(index: int, num_images: int) -> str:
    """What image `index` of `num_images` is called."""
    return f"{index:0{max(6, len(str(num_images - 1)))}d}"


class ImageFiles:
    """Image files that are being written; has the same methods as `npz_stream.NpzArray`.

    Args:
        folder: created when missing; files in it are kept, or replaced when they are written again.
        num_images: of the whole set.
        extension: of the files, without the dot.
        encode: (H, W, 3) uint8 to the bytes of a file.
    """

    def __init__(self, folder: Path, num_images: int, extension: str, encode: Encode) -> None:
        self._folder, self._extension, self._encode = folder, extension, encode
        self._num_images = num_images
        self._unflushed: deque[Path] = deque()
        folder.mkdir(exist_ok=True)

    def path(self, index: int) -> Path:
        """Where image `index` lies."""
        return self._folder / f"{index_name(index, self._num_images)}.{self._extension}"

    def write(self, first: int, rows: np.ndarray) -> int:
        """Write images (n, H, W, 3) uint8 from index `first` on; safe from several threads. Returns a CRC-32."""
        for index, pixels in enumerate(rows, start=first):
            path = self.path(index)
            path.write_bytes(self._encode(pixels))
            self._unflushed.append(path)
        return zlib.crc32(np.ascontiguousarray(rows).data)

    def flush(self) -> None:
        """Wait until what was written is on the disk; others may be written meanwhile."""
        paths = [self._unflushed.popleft() for _ in range(len(self._unflushed))]
        for path in [*paths, self._folder]:
            flush_entry(path)

    def finish(self, pieces: Iterable[tuple[int, int]]) -> None:
        """Nothing is left to do: the files are whole."""

    def close(self) -> None:
        """Nothing is open."""


class ImageShards:
    """WebDataset shards. The files lie in a folder of their own until `finish` packs them in order.

    Args:
        work: folder of the unfinished set.
        labels: (N,) class indices, -1 for none.
        class_names: for index.json; () when unknown.
        encode: (H, W, 3) uint8 to the bytes of a PNG file.
    """

    def __init__(self, work: Path, labels: np.ndarray, class_names: Sequence[str], encode: Encode) -> None:
        self._work, self._labels, self._class_names = work, labels, class_names
        self._files = ImageFiles(work / _STAGED, len(labels), FILE_TYPES["wds"], encode)
        self.write, self.flush, self.close = self._files.write, self._files.flush, self._files.close

    def finish(self, pieces: Iterable[tuple[int, int]]) -> None:
        """Pack the files; shards that were packed before are packed again, to the same bytes."""
        folder = self._work / PRODUCTS["wds"]
        folder.mkdir(exist_ok=True)
        shards: list[ShardInfo] = []
        for number, first in enumerate(range(0, len(self._labels), IMAGES_A_SHARD)):
            shards.append(write_shard(folder / shard_name("images", number), self._samples(first)))
        write_set_index(folder, shards, self._class_names)

    def _samples(self, first: int) -> Iterator[ShardSample]:
        for index in range(first, min(first + IMAGES_A_SHARD, len(self._labels))):
            data = self._files.path(index).read_bytes()
            name = index_name(index, len(self._labels))
            yield ShardSample(name, FILE_TYPES["wds"], data, int(self._labels[index]))


def open_output(
    image_format: ImageFormat,
    work: Path,
    image_size: int,
    labels: np.ndarray,
    class_names: Sequence[str],
    encode: Encode | None,
) -> ImageOutput | None:
    """What takes the images; its product will be `work / PRODUCTS[image_format]`. None for "none".

    Args:
        labels: (N,) class indices, -1 for none; they also tell the number of images.
        encode: to the format's files; not needed for "npz".
    """
    if image_format == "none":
        return None
    if image_format == "npz":
        return NpzArray(work / PRODUCTS["npz"], (len(labels), image_size, image_size, 3), np.uint8)
    if encode is None:
        raise ValueError(f"image_format {image_format!r}: expected a function that encodes {FILE_TYPES[image_format]}")
    if image_format == "wds":
        return ImageShards(work, labels, class_names, encode)
    return ImageFiles(work / PRODUCTS[image_format], len(labels), FILE_TYPES[image_format], encode)


def take_back(image_format: ImageFormat, folder: Path, work: Path) -> None:
    """Undo moving the product from `work` to `folder`, where a writer was killed after it."""
    name = PRODUCTS.get(image_format)
    if name and (folder / name).exists():
        os.replace(folder / name, work / name)
