"""A folder of image files that is written piece by piece in any order.

Specification: `<index>.<extension>`, the index in decimal with leading zeros (six digits, more when there are more than
a million images), counted from 0.
"""

import zlib
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from titokctl.formats.atomic import flush_entry

Encode = Callable[[np.ndarray], bytes]


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
