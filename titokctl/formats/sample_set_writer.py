"""Writing a sample set (`sample_set` has its specification) in chunks, with memory for one of them.

with SampleSetWriter(folder, settings, num_images=50_000, image_size=256, image_format="npz", encode=png) as writer:
    if not writer.has(first):
        writer.add(first, ids, images)      # in any order, in pieces that are the same in every run
    writer.commit()
    writer.finish(header, labels, manifest)
"""

import io
import math
import os
import shutil
import zipfile
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from titokctl.errors import UserError
from titokctl.formats.atomic import disk_errors, write_bytes, write_json
from titokctl.formats.image_files import Encode, ImageFiles
from titokctl.formats.npz_stream import NpzArray
from titokctl.formats.picture import grid
from titokctl.formats.sample_set import (
    FORMAT,
    FORMAT_VERSION,
    GRID,
    IDS,
    IMAGES,
    MANIFEST,
    SETTINGS,
    UNFINISHED,
    ImageFormat,
    SampleSet,
)
from titokctl.formats.token_cache import CacheHeader
from titokctl.formats.token_cache_writer import TokenCacheWriter

_NUM_SHOWN = 64
_WRITERS = 4


class Images(Protocol):
    """How images reach the disk: `NpzArray`, `ImageFiles`."""

    def write(self, first: int, rows: np.ndarray) -> int: ...
    def read(self, first: int, count: int) -> np.ndarray: ...
    def flush(self) -> None: ...
    def finish(self, pieces: list[tuple[int, int]]) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class _Piece:
    """Images that were added together."""

    count: int
    crc: int
    ids: np.ndarray


class SampleSetWriter:
    """Writes a sample set, or goes on with an unfinished one.

    Args:
        folder: of the set; locked by the caller. It must be empty or hold an unfinished set with equal settings.
        settings: JSON values; everything that decides about the images.
        num_images: N.
        image_size: edge of an image in pixels.
        image_format: "npz", or "png" for files.
        encode: (H, W, 3) uint8 to the bytes of a PNG file.
    """

    def __init__(
        self,
        folder: Path,
        settings: dict[str, Any],
        *,
        num_images: int,
        image_size: int,
        image_format: ImageFormat,
        encode: Encode,
    ) -> None:
        self.folder, self.settings = folder, settings
        self.num_images, self.image_size, self.image_format = num_images, image_size, image_format
        self._encode = encode
        self._work = folder / UNFINISHED
        self._product = IMAGES[image_format]
        self._pending: list[tuple[int, np.ndarray, Future[int]]] = []

    def __enter__(self) -> "SampleSetWriter":
        with disk_errors(self.folder):
            self._work.mkdir(parents=True, exist_ok=True)
            write_json(self._work / SETTINGS, self.settings)
            if (self.folder / self._product).exists():  # killed while the finished parts were moved into place
                os.replace(self.folder / self._product, self._work / self._product)
            self._images = self._opened()
        self._done: dict[int, _Piece] = {}
        for path in sorted(self._work.glob("chunk-*.npz")):
            self._done |= _read_chunk(path)
        self._pool = ThreadPoolExecutor(_WRITERS, thread_name_prefix="images")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._images.close()

    @property
    def num_done(self) -> int:
        """Images that are safely on the disk."""
        return sum(piece.count for piece in self._done.values())

    @property
    def num_pending(self) -> int:
        """Images that were added since the last commit."""
        return sum(len(ids) for _, ids, _ in self._pending)

    def has(self, first: int) -> bool:
        """Whether the piece that begins with image `first` is safely on the disk."""
        return first in self._done

    def add(self, first: int, ids: np.ndarray, images: np.ndarray) -> None:
        """Hand over a piece; it is written in the background and safe after the next `commit`.

        Args:
            first: index of its first image.
            ids: (n, K) integers.
            images: (n, H, W, 3) uint8; must not be changed afterwards.
        """
        self._pending.append((first, ids, self._pool.submit(self._images.write, first, images)))

    def commit(self) -> None:
        """Wait until all that was added is on the disk, and record it. Raises UserError when the disk is full."""
        if not self._pending:
            return
        with disk_errors(self.folder):
            pieces = {first: _Piece(len(ids), crc.result(), ids) for first, ids, crc in self._pending}
            self._images.flush()
            write_bytes(self._work / f"chunk-{min(pieces):09d}.npz", _chunk_bytes(pieces))
        self._done |= pieces
        self._pending = []

    def finish(self, header: CacheHeader, labels: np.ndarray, manifest: dict[str, Any]) -> SampleSet:
        """Put the set together once every image was committed.

        Args:
            header: of ids.h5.
            labels: (N,) integers, -1 for none.
            manifest: JSON values to keep beside those that the format asks for.

        Raises ValueError when images are missing.
        """
        pieces = self._complete_pieces()
        written = self._manifest() | manifest
        with disk_errors(self.folder):
            self._images.finish([(piece.count, piece.crc) for piece in pieces])
            shown = self._images.read(0, min(_NUM_SHOWN, self.num_images))
            write_bytes(self._work / GRID, self._encode(grid(shown, columns=math.isqrt(len(shown) - 1) + 1)))
            self._write_ids(header, labels, [piece.ids for piece in pieces])
            for name in (self._product, IDS, GRID):
                os.replace(self._work / name, self.folder / name)
            write_json(self.folder / MANIFEST, written)
            shutil.rmtree(self._work)
        return SampleSet(self.folder, written)

    def _opened(self) -> Images:
        path = self._work / self._product
        if self.image_format == "npz":
            return NpzArray(path, (self.num_images, self.image_size, self.image_size, 3), np.uint8)
        return ImageFiles(path, self.num_images, "png", self._encode)

    def _complete_pieces(self) -> list[_Piece]:
        """All pieces in the order of their images."""
        end, pieces = 0, []
        for first, piece in sorted(self._done.items()):
            if first != end:
                break
            end += piece.count
            pieces.append(piece)
        if end != self.num_images:
            raise ValueError(f"expected {self.num_images} committed images without a gap, got {end}")
        return pieces

    def _write_ids(self, header: CacheHeader, labels: np.ndarray, ids: list[np.ndarray]) -> None:
        digits = max(6, len(str(self.num_images - 1)))
        with TokenCacheWriter(self._work / IDS, header, num_rows=self.num_images, key_bytes=digits) as cache:
            first = 0
            for block in ids:
                last = first + len(block)
                cache.append(block, labels[first:last], [f"{i:0{digits}d}" for i in range(first, last)])
                first = last

    def _manifest(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "num_images": self.num_images,
            "image_size": self.image_size,
            "images": self._product,
            "image_format": self.image_format,
            "settings": self.settings,
        }


def _chunk_bytes(pieces: dict[int, _Piece]) -> bytes:
    out = io.BytesIO()
    table = np.array([(first, piece.count, piece.crc) for first, piece in pieces.items()], np.int64)
    np.savez(out, pieces=table, ids=np.concatenate([piece.ids for piece in pieces.values()]))
    return out.getvalue()


def _read_chunk(path: Path) -> dict[int, _Piece]:
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as chunk:
            table, ids = chunk["pieces"], chunk["ids"]
        parts = np.split(ids, np.cumsum(table[:, 1])[:-1])
        return {int(first): _Piece(int(n), int(crc), part) for (first, n, crc), part in zip(table, parts, strict=True)}
    except (ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} is damaged", "remove it to draw its images again, or start over with --overwrite"
        ) from error
