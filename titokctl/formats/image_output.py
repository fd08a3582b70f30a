"""Sets of images that are written with memory for a few, as one .npz, a folder of files, or WebDataset shards.

Specification:
    npz     `arr_0` (N, H, W, 3) uint8 (`npz_stream`)
    png     a folder of PNG files: `<name>.png` where each image has a name, perhaps with folders in it, else
            `<index>.png`, the index in decimal with leading zeros (six digits, more when there are more than a million
            images), counted from 0
    webp    the same in lossless WebP
    wds     a folder of shards with index.json (`shard_set`): `images-000000.tar`, ..., 1,000 PNG files each with the
            same names, and the class of each where it has one
    none    nothing: the ids are enough to make the images
Until the set is finished, chunks record which images are on the disk. A chunk is `chunk-<first index>.npz` in the
folder of the unfinished set, with `pieces` (n, 3) int64, rows of (first index, number of images, CRC-32 of their pixels
or 0), and `ids`, the ids of these images in the same order. It gets its name by a rename after its images are on the
disk; images that no chunk names are written again. Several processes may write different pieces.
"""

import io
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, Self

import numpy as np

from titokctl.errors import UserError
from titokctl.formats.atomic import disk_errors, flush_entry, write_bytes
from titokctl.formats.npz_reader import NPZ_DAMAGE
from titokctl.formats.npz_stream import NpzArray
from titokctl.formats.shard_set import ShardInfo, ShardSample, shard_name, write_set_index, write_shard

ImageFormat = Literal["npz", "png", "webp", "wds", "none"]
# The file or folder that holds the images.
PRODUCTS = {"npz": "images.npz", "png": "images", "webp": "images", "wds": "shards"}
FILE_TYPES = {"png": "png", "webp": "webp", "wds": "png"}
IMAGES_A_SHARD = 1000
STAGED = "staged"
_WRITERS = 8
_WAITING_PIECES = 16
Encode = Callable[[np.ndarray], bytes]


@dataclass(frozen=True)
class OutputSpec:
    """The images of a set, and the form in which they are written.

    Args:
        names: of the files of "png" and "webp", unique, without extension, perhaps with folders; () for the indices.
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
    names: Sequence[str] = ()


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
        names: as in `OutputSpec`.
    """

    def __init__(
        self, folder: Path, num_images: int, extension: str, encode: Encode, names: Sequence[str] = ()
    ) -> None:
        self._folder, self._extension, self._encode = folder, extension, encode
        self._num_images, self._names = num_images, names
        self._unflushed: deque[Path] = deque()
        folder.mkdir(exist_ok=True)

    def path(self, index: int) -> Path:
        """Return the path of image `index`."""
        name = self._names[index] if self._names else index_name(index, self._num_images)
        return self._folder / f"{name}.{self._extension}"

    def write(self, first: int, rows: np.ndarray) -> int:
        """Write images (n, H, W, 3) uint8 from index `first` on; safe from several threads. Returns a CRC-32."""
        for index, pixels in enumerate(rows, start=first):
            path = self.path(index)
            if self._names:
                path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self._encode(pixels))
            self._unflushed.append(path)
        return zlib.crc32(np.ascontiguousarray(rows).data)

    def flush(self) -> None:
        """Wait until everything that was written is on the disk; other threads may write meanwhile."""
        paths = [self._unflushed.popleft() for _ in range(len(self._unflushed))]
        for path in [*paths, *{path.parent for path in paths}, self._folder]:
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
        self._files = ImageFiles(work / STAGED, len(spec.labels), FILE_TYPES["wds"], encode)
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
    return ImageFiles(work / PRODUCTS[form], num_images, FILE_TYPES[form], spec.encode, spec.names)


@dataclass(frozen=True)
class Rows:
    """Consecutive images: ids (n, K), pixels (n, H, W, 3) uint8 if wanted, and further arrays by name."""

    ids: np.ndarray
    images: np.ndarray | None = None
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Piece:
    """Images that were added together and are on the disk, their ids, and the CRC-32 of their pixels."""

    count: int
    crc: int
    ids: np.ndarray


class ChunkWriter:
    """Takes pieces in any order; a context manager.

    `arrays` may be filled with further arrays by name, of which `place` says where the rows of a piece go.

    Args:
        work: folder of the unfinished set.
        output: writes the images; None to keep none.
    """

    def __init__(self, work: Path, output: ImageOutput | None) -> None:
        self.work, self.output = work, output
        self.arrays: dict[str, NpzArray] = {}
        self.done: dict[int, Piece] = {}
        self._pending: list[tuple[int, int, Future[Piece]]] = []
        self._committing: Future[dict[int, Piece]] | None = None
        self._slots = threading.BoundedSemaphore(_WAITING_PIECES)

    def __enter__(self) -> Self:
        self._pool = ThreadPoolExecutor(_WRITERS, thread_name_prefix="images")
        self._committer = ThreadPoolExecutor(1, thread_name_prefix="commit")
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._committer.shutdown(wait=True, cancel_futures=True)
        for store in (self.output, *self.arrays.values()):
            if store is not None:
                store.close()

    @property
    def num_done(self) -> int:
        """Number of images that a chunk names."""
        return sum(piece.count for piece in self.done.values())

    @property
    def num_pending(self) -> int:
        """Number of images that were added since the last commit."""
        return sum(count for _, count, _ in self._pending)

    def read_chunks(self) -> None:
        """Read all chunks, also those of other processes, into `done`. Raises UserError for a damaged chunk."""
        for path in sorted(self.work.glob("chunk-*.npz")):
            self.done |= _read_chunk(path)

    def add(self, first: int, count: int, rows: Callable[[], Rows]) -> None:
        """Write `count` images from index `first` on in the background; the next `commit` records them.

        A thread of the pool calls `rows`, which may wait for a device. `add` waits while too many pieces are unwritten.
        """
        self._slots.acquire()
        self._pending.append((first, count, self._pool.submit(self._write, first, rows)))

    def commit(self, wait: bool = True) -> None:
        """Record the added images once they are on the disk.

        Without `wait` this happens in the background; nothing is done while an earlier commit is still at work.
        Raises UserError when the disk is full, also for an earlier commit.
        """
        with disk_errors(self.work.parent):
            if self._committing is not None:
                if not wait and not self._committing.done():
                    return
                self.done |= self._committing.result()
                self._committing = None
            if not self._pending:
                return
            pending, self._pending = self._pending, []
            self._committing = self._committer.submit(self._commit, pending)
        if wait:
            self.commit()

    def in_order(self, num_images: int) -> list[Piece]:
        """Return all pieces in the order of their images. Raises ValueError when images are missing."""
        end, pieces = 0, []
        for first, piece in sorted(self.done.items()):
            if first != end:
                break
            end += piece.count
            pieces.append(piece)
        if end != num_images:
            raise ValueError(f"expected {num_images} committed images without a gap, got {end}")
        return pieces

    def place(self, name: str, first: int, values: np.ndarray) -> tuple[int, np.ndarray]:
        """Return which of a piece's values for the array `name` are kept, and the row of the first one."""
        return first, values

    def _write(self, first: int, rows: Callable[[], Rows]) -> Piece:
        try:
            piece = rows()
            crc = 0
            if self.output is not None and piece.images is not None:
                crc = self.output.write(first, piece.images)
            for name, values in piece.arrays.items():
                start, kept = self.place(name, first, values)
                if len(kept):
                    self.arrays[name].write(start, kept)
            return Piece(len(piece.ids), crc, piece.ids)
        finally:
            self._slots.release()

    def _commit(self, pending: list[tuple[int, int, Future[Piece]]]) -> dict[int, Piece]:
        pieces = {first: piece.result() for first, _, piece in pending}
        for store in (self.output, *self.arrays.values()):
            if store is not None:
                store.flush()
        write_bytes(self.work / f"chunk-{min(pieces):09d}.npz", _chunk_bytes(pieces))
        return pieces


def _chunk_bytes(pieces: dict[int, Piece]) -> bytes:
    out = io.BytesIO()
    table = np.array([(first, piece.count, piece.crc) for first, piece in pieces.items()], np.int64)
    np.savez(out, pieces=table, ids=np.concatenate([piece.ids for piece in pieces.values()]))
    return out.getvalue()


def _read_chunk(path: Path) -> dict[int, Piece]:
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as chunk:
            table, ids = chunk["pieces"], chunk["ids"]
        parts = np.split(ids, np.cumsum(table[:, 1])[:-1])
        return {int(first): Piece(int(n), int(crc), part) for (first, n, crc), part in zip(table, parts, strict=True)}
    except NPZ_DAMAGE as error:
        raise UserError(f"{path} is damaged", "delete it, and the same command makes its images again") from error
