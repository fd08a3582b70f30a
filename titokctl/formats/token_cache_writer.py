"""Writing a token cache (`token_file` has its specification) in bounded memory, block by block.

    with TokenCacheWriter(path, header, num_rows=50_000, key_bytes=800_000) as writer:
        writer.append(ids, labels, keys, {"flip": flipped_ids})     # as often as needed, in row order

The file appears under `path` when the block ends without an error and every row was written; otherwise not at all.
"""

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType

import h5py
import numpy as np

from titokctl import __version__
from titokctl.errors import fault_in_words
from titokctl.formats.atomic import atomic_path, claim
from titokctl.formats.token_file import FORMAT, FORMAT_VERSION, LIBRARY, check_written
from titokctl.formats.token_header import ROWS_PER_CRC, CacheHeader, ContentsChecksums
from titokctl.formats.token_keys import Keys

_CHUNK_ROWS = 8192
_CHUNK_BYTES = 1 << 19
_PAGE = 4096


class TokenCacheWriter:
    """A context manager that writes a token cache of `num_rows` rows and renames it into place at the end.

    Args:
        path: the final name; an existing file is replaced at the end, and not before.
        header: the header of the file; every `append` must have exactly its `views`.
        num_rows: N, at least 1.
        key_bytes: room that is claimed on the disk for all keys, in bytes.
        compress: store rows in chunks, shuffled and deflated: smaller, but readers can't map them.
    """

    def __init__(
        self, path: Path | str, header: CacheHeader, *, num_rows: int, key_bytes: int, compress: bool = False
    ) -> None:
        if num_rows < 1:
            raise ValueError(f"num_rows must be at least 1, got {num_rows}")
        self._path, self._header = Path(path), header
        self._num_rows, self._key_room = num_rows, key_bytes
        self._done, self._key_bytes, self._compress = 0, 0, compress

    def __enter__(self) -> "TokenCacheWriter":
        with contextlib.ExitStack() as stack:
            temporary = self._temporary = stack.enter_context(atomic_path(self._path))
            claim(temporary, self._bytes_at_most())  # fails where the disk is too full
            # Large datasets start on a page, so that every reader can map them. Nobody else knows the temporary name,
            # so no lock is needed, which some network file systems refuse.
            self._file = h5py.File(
                temporary, "w", libver=LIBRARY, alignment_threshold=_PAGE, alignment_interval=_PAGE, locking=False
            )
            stack.callback(self._close, temporary)
            self._create()
            self._file.flush()
            claim(temporary, self._bytes_at_most())  # again: the library empties a file that it creates
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        if kind is not None:
            return self._stack.__exit__(kind, error, trace)
        with self._stack:
            if self._done != self._num_rows:
                raise ValueError(f"expected {self._num_rows} rows, got {self._done}")
            self._complete()
        return None

    def _complete(self) -> None:
        """Write what follows from the rows, close the file, and compare it with what was to be written.

        Raises OSError or UserError when the disk failed.
        """
        printed = io.StringIO()  # h5py prints errors that it meets when it closes something, and goes on
        try:
            with contextlib.redirect_stderr(printed):
                self._finish()
                self._close(self._temporary)
                check_written(self._temporary, self._checksums)
        except OSError as error:
            raise fault_in_words(OSError(printed.getvalue()), self._path) or error from error

    def append(
        self,
        ids: np.ndarray,
        labels: np.ndarray,
        keys: Sequence[str | bytes] | np.ndarray | Keys,
        views: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Write the next n rows.

        Args:
            ids: (n, K) integers in [0, V), or latents (n, K, C) of a Gaussian tokenizer.
            labels: (n,) integers, -1 for none.
            keys: n names: text, UTF-8 bytes, an array of NumPy's type S, or `Keys`.
            views: the same of every view of the header.

        Raises ValueError when shapes, views, ids or keys don't fit the header.
        """
        views = views or {}
        if set(views) != set(self._header.views):
            raise ValueError(f"expected the views {sorted(self._header.views)}, got {sorted(views)}")
        found, n = Keys.of(keys), len(keys)
        if len(labels) != n or self._done + n > self._num_rows:
            raise ValueError(f"got {n} keys and {len(labels)} labels after {self._done} of {self._num_rows} rows")
        for name in self._id_paths:
            block = ids if name == self._header.main else views[name.removeprefix("views/")]
            self._write(name, self._checked_rows(block, n), self._done)
        self._write("labels", np.ascontiguousarray(labels, dtype="<i4"), self._done)
        self._write("key_ends", (found.ends + self._key_bytes).astype("<u8"), self._done)
        self._dataset("keys").resize((self._key_bytes + len(found.data),))
        self._write("keys", found.data, self._key_bytes)
        self._key_bytes += len(found.data)
        self._done += n

    def _close(self, temporary: Path) -> None:
        if not self._file:
            return
        try:
            self._file.flush()
            size = self._file.id.get_filesize()
        finally:
            self._file.close()
        os.truncate(temporary, size)

    def _bytes_at_most(self) -> int:
        header = self._header
        row = header.row_bytes + 4 + 8
        return self._num_rows * row + self._key_room + 4 * _PAGE * (8 + len(header.views)) + (1 << 18)

    def _create(self) -> None:
        header, n = self._header, self._num_rows
        self._open: dict[str, h5py.Dataset] = {}
        self._id_paths = [header.main, *(f"views/{view}" for view in header.views)]
        self._checksums = ContentsChecksums()
        for group in ("checksums", *(("views", "checksums/views") if header.views else ())):
            made = h5py.h5p.create(h5py.h5p.GROUP_CREATE)
            made.set_obj_track_times(False)  # the same contents give the same file
            h5py.h5g.create(self._file.id, group.encode(), gcpl=made)
        for name in self._id_paths:
            self._rows_dataset(name, (n, *header.row_shape), header.row_dtype)
        self._contiguous("labels", (n,), np.dtype("<i4"))
        self._deflated("key_ends", n, np.dtype("<u8"))
        self._deflated("keys", 0, np.dtype("u1"))

    def _rows_dataset(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        if not self._compress:
            self._contiguous(name, shape, dtype)
            return
        rows = max(1, min(shape[0], _CHUNK_ROWS, _CHUNK_BYTES // (int(np.prod(shape[1:])) * dtype.itemsize)))
        self._file.create_dataset(
            name, shape, dtype, chunks=(rows, *shape[1:]), compression="gzip", shuffle=True, fletcher32=True
        )

    def _contiguous(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        settings.set_layout(h5py.h5d.CONTIGUOUS)
        settings.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        settings.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        settings.set_obj_track_times(False)
        space = h5py.h5s.create_simple(shape)
        kind = h5py.h5t.py_create(dtype, logical=True)
        h5py.h5d.create(self._file.id, name.encode(), kind, space, dcpl=settings)

    def _deflated(self, name: str, length: int, dtype: np.dtype) -> None:
        # A chunk stays in the library's cache of 1 MiB until it is full, so that it is compressed once.
        chunks = (_CHUNK_BYTES // dtype.itemsize,)
        shape = {"shape": (length,), "maxshape": (None,)} if not length else {"shape": (length,)}
        chunks = chunks if not length else (min(length, *chunks),)
        shuffle = dtype.itemsize > 1
        self._file.create_dataset(
            name, dtype=dtype, chunks=chunks, compression="gzip", shuffle=shuffle, fletcher32=True, **shape
        )

    def _checked_rows(self, block: np.ndarray, n: int) -> np.ndarray:
        header, wanted = self._header, (n, *self._header.row_shape)
        kinds, what = ("f", "float latents") if header.token_size else ("iu", "integer ids")
        if block.shape != wanted or block.dtype.kind not in kinds:
            raise ValueError(f"expected {what} of shape {wanted}, got {block.dtype} {block.shape}")
        if header.token_size:
            block = np.ascontiguousarray(block, dtype=header.row_dtype)
            if not np.isfinite(block).all():
                raise ValueError("latents must be finite in float16")
            return block
        if n and not 0 <= int(block.min()) <= int(block.max()) < header.codebook_size:
            low, high = int(block.min()), int(block.max())
            raise ValueError(f"ids reach from {low} to {high}, outside [0, {header.codebook_size})")
        return np.ascontiguousarray(block, dtype=header.row_dtype)

    def _write(self, name: str, block: np.ndarray, first: int) -> None:
        # Closing a dataset flushes its chunks, half-filled ones too, which are deflated again with the next block.
        self._dataset(name)[first : first + len(block)] = block
        self._checksums.update(name, block)

    def _dataset(self, name: str) -> h5py.Dataset:
        if name not in self._open:
            self._open[name] = self._file[name]
        return self._open[name]

    def _bytes(self, name: str, text: str) -> bytes:
        """Write a text as a contiguous dataset of bytes, which needs no heap of the file."""
        data = np.frombuffer(text.encode(), np.uint8)
        self._contiguous(name, data.shape, data.dtype)
        self._file[name][:] = data
        return data.tobytes()

    def _finish(self) -> None:
        header, root = self._header, self._file.attrs
        about = asdict(replace(header, created_by=header.created_by or f"titokctl {__version__}"))
        names = json.dumps(about.pop("class_names"), ensure_ascii=False)
        self._checksums.update("class_names", np.frombuffer(self._bytes("class_names", names), np.uint8))
        encoded = self._bytes("header", json.dumps(about, ensure_ascii=False))
        for name in self._checksums.paths:
            self._file[f"checksums/{name}"] = np.array(self._checksums.crcs(name), dtype="<u4")
        sums = self._file["checksums"].attrs
        sums["rows_per_crc"] = ROWS_PER_CRC
        sums["sha256"] = np.bytes_(self._checksums.sha256())
        sums["header_sha256"] = np.bytes_(hashlib.sha256(encoded).hexdigest())
        root["format"], root["format_version"] = np.bytes_(FORMAT), FORMAT_VERSION
        self._file.flush()
        root["complete"] = 1
        self._file.flush()
