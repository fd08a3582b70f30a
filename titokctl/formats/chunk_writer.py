"""Write many images with memory for a few: threads write pieces, and chunks record which pieces are on the disk.

Specification: a chunk is `chunk-<first index>.npz` in the folder of the unfinished set, with `pieces` (n, 3) int64,
rows of (first index, number of images, CRC-32 of their pixels or 0), and `ids`, the ids of these images in the same
order. It gets its name by a rename after its images are on the disk; images that no chunk names are written again.
Several processes may write different pieces.
"""

import io
import threading
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np

from titokctl.errors import UserError
from titokctl.formats.atomic import disk_errors, write_bytes
from titokctl.formats.image_output import ImageOutput
from titokctl.formats.npz_stream import NpzArray

_WRITERS = 8
_WAITING_PIECES = 16


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

    `arrays` may be filled with further arrays by name; the rows of a piece that lie behind an array's end are dropped.

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

    def _write(self, first: int, rows: Callable[[], Rows]) -> Piece:
        try:
            piece = rows()
            crc = 0
            if self.output is not None and piece.images is not None:
                crc = self.output.write(first, piece.images)
            for name, values in piece.arrays.items():
                kept = values[: max(0, self.arrays[name].shape[0] - first)]
                if len(kept):
                    self.arrays[name].write(first, kept)
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
    except (ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} is damaged", "delete it to make its images again, or start over with --overwrite"
        ) from error
