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
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from titokctl.formats.atomic import flush_entry
from titokctl.formats.npz_stream import NpzArray
from titokctl.formats.shard_set import ShardInfo, ShardSample, shard_name, write_set_index, write_shard

ImageFormat = Literal["npz", "png", "webp", "wds", "none"]
# The file or folder that holds the images.
PRODUCTS = {"npz": "images.npz", "png": "images", "webp": "images", "wds": "shards"}
FILE_TYPES = {"png": "png", "webp": "webp", "wds": "png"}
IMAGES_A_SHARD = 1000
_STAGED = "staged"
Encode = Callable[[np.ndarray], bytes]


@dataclass(frozen=True)
class OutputSpec:
    """The images of a set, and the form in which they are written.

    Args:
        image_size: edge of an image in pixels.
        labels: (N,) class indices, -1 for none; their number is the number of images.
        class_names: of the labels; () when unknown.
        encode: (H, W, 3) uint8 to the bytes of an image file; needed for "png", "webp" and "wds".
    """

    image_format: ImageFormat
    image_size: int
    labels: np.ndarray
    class_names: Sequence[str] = ()
    encode: Encode | None = None


class ImageOutput(Protocol):
    """Images on their way to the disk: `NpzArray`, `ImageFiles`, `ImageShards`."""

    def write(self, first: int, rows: np.ndarray) -> int:
        """Write images (n, H, W, 3) uint8 from index `first` on, from any thread. Returns the CRC-32 of the pixels."""

    def flush(self) -> None:
        """Wait until everything that was written is on the disk."""

    def finish(self, pieces: list[tuple[int, int]]) -> None:
        """Complete the product; `pieces` are (number of images, CRC-32) in the order of the images."""

    def close(self) -> None:
        """Close files, finished or not."""


def index_name(index: int, num_images: int) -> str:
    """Return the name of image `index` of `num_images`."""
    return f"{index:0{max(6, len(str(num_images - 1)))}d}"


class ImageFiles:
    """An `ImageOutput` that writes a folder of image files.

    Args:
        folder: made when missing; files in it are kept until they are written again.
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
        """Return the path of image `index`."""
        return self._folder / f"{index_name(index, self._num_images)}.{self._extension}"

    def write(self, first: int, rows: np.ndarray) -> int:
        """Write images (n, H, W, 3) uint8 from index `first` on; safe from several threads. Returns a CRC-32."""
        for index, pixels in enumerate(rows, start=first):
            path = self.path(index)
            path.write_bytes(self._encode(pixels))
            self._unflushed.append(path)
        return zlib.crc32(np.ascontiguousarray(rows).data)

    def flush(self) -> None:
        """Wait until everything that was written is on the disk; other threads may write meanwhile."""
        paths = [self._unflushed.popleft() for _ in range(len(self._unflushed))]
        for path in [*paths, self._folder]:
            flush_entry(path)

    def finish(self, pieces: Iterable[tuple[int, int]]) -> None:
        """Do nothing: the files are complete."""

    def close(self) -> None:
        """Do nothing: no file is open."""


class ImageShards:
    """An `ImageOutput` that writes WebDataset shards; the files lie in a folder until `finish` packs them in order.

    Args:
        work: folder of the unfinished set.
        spec: what is written.
        encode: (H, W, 3) uint8 to the bytes of a PNG file.
    """

    def __init__(self, work: Path, spec: OutputSpec, encode: Encode) -> None:
        self._work, self._labels, self._class_names = work, spec.labels, spec.class_names
        self._files = ImageFiles(work / _STAGED, len(spec.labels), FILE_TYPES["wds"], encode)
        self.write, self.flush, self.close = self._files.write, self._files.flush, self._files.close

    def finish(self, pieces: Iterable[tuple[int, int]]) -> None:
        """Pack the files; shards that an earlier run packed are packed again, to the same bytes."""
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


def open_output(work: Path, spec: OutputSpec) -> ImageOutput | None:
    """Open what writes the images of `spec`; the product will be `work / PRODUCTS[image_format]`. None for "none"."""
    form, num_images = spec.image_format, len(spec.labels)
    if form == "none":
        return None
    if form == "npz":
        return NpzArray(work / PRODUCTS["npz"], (num_images, spec.image_size, spec.image_size, 3), np.uint8)
    if spec.encode is None:
        raise ValueError(f"image_format {form!r}: expected a function that encodes {FILE_TYPES[form]}, not None")
    if form == "wds":
        return ImageShards(work, spec, spec.encode)
    return ImageFiles(work / PRODUCTS[form], num_images, FILE_TYPES[form], spec.encode)


def take_back(image_format: ImageFormat, folder: Path, work: Path) -> None:
    """Move the product from `folder` back to `work`, if a writer was killed after it had moved the product there."""
    name = PRODUCTS.get(image_format)
    if name and (folder / name).exists():
        os.replace(folder / name, work / name)
