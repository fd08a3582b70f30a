"""Writing a token cache (`token_file` has its specification) in bounded memory, block by block.

    with TokenCacheWriter(path, header, num_rows=50_000, key_bytes=16) as writer:
        writer.append(ids, labels, keys, {"flip": flipped_ids})     # as often as needed, in row order

The file appears under `path` when the block ends without an error and every row was written; otherwise not at all.
"""

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import h5py
import numpy as np

from titokctl import __version__
from titokctl.formats.atomic import atomic_path, claim
from titokctl.formats.token_file import FORMAT, FORMAT_VERSION
from titokctl.formats.token_header import ROWS_PER_CRC, CacheHeader, ContentsChecksums

_CHUNK_ROWS = 8192
_CHUNK_BYTES = 1 << 19
_PAGE = 4096


class TokenCacheWriter:
    """A context manager that writes a token cache of `num_rows` rows and renames it into place at the end.

    Args:
        path: the final name; an existing file is replaced at the end, and not before.
        header: the header of the file; every `append` must have exactly its `views`.
        num_rows: N, at least 1.
        key_bytes: length of the longest key in UTF-8 bytes.
        compress: store rows in chunks, shuffled and deflated: smaller, but readers can't map them.
    """

    def __init__(
        self, path: Path | str, header: CacheHeader, *, num_rows: int, key_bytes: int, compress: bool = False
    ) -> None:
        if num_rows < 1 or key_bytes < 1:
            raise ValueError(f"num_rows and key_bytes must be at least 1, got {num_rows} and {key_bytes}")
        self._path, self._header = Path(path), header
        self._num_rows, self._key_bytes = num_rows, key_bytes
        self._done, self._compress = 0, compress

    def __enter__(self) -> "TokenCacheWriter":
        with contextlib.ExitStack() as stack:
            temporary = stack.enter_context(atomic_path(self._path))
            claim(temporary, self._bytes_at_most())  # fails where the disk is too full
            # Large datasets start on a page, so that every reader can map them.
            self._file = h5py.File(temporary, "w", alignment_threshold=_PAGE, alignment_interval=_PAGE)
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
            self._finish()
        return None

    def append(
        self,
        ids: np.ndarray,
        labels: np.ndarray,
        keys: Sequence[str | bytes] | np.ndarray,
        views: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Write the next n rows.

        Args:
            ids: (n, K) integers in [0, V), or latents (n, K, C) of a Gaussian tokenizer.
            labels: (n,) integers, -1 for none.
            keys: n names, text or UTF-8 bytes.
            views: the same of every view of the header.

        Raises ValueError when shapes, views, ids or keys don't fit the header.
        """
        views = views or {}
        if set(views) != set(self._header.views):
            raise ValueError(f"expected the views {sorted(self._header.views)}, got {sorted(views)}")
        n = len(keys)
        if len(labels) != n or self._done + n > self._num_rows:
            raise ValueError(f"got {n} keys and {len(labels)} labels after {self._done} of {self._num_rows} rows")
        for name in self._id_paths:
            block = ids if name == self._header.main else views[name.removeprefix("views/")]
            self._write(name, self._checked_rows(block, n))
        self._write("labels", np.ascontiguousarray(labels, dtype="<i4"))
        self._write("keys", _as_bytes(keys, self._key_bytes))
        self._done += n

    def _close(self, temporary: Path) -> None:
        try:
            self._file.flush()
            size = self._file.id.get_filesize()
        finally:
            self._file.close()
        os.truncate(temporary, size)

    def _bytes_at_most(self) -> int:
        header = self._header
        row = header.row_bytes + 4 + self._key_bytes
        return self._num_rows * row + 4 * _PAGE * (4 + len(header.views)) + (1 << 18)

    def _create(self) -> None:
        header, n = self._header, self._num_rows
        self._open: dict[str, h5py.Dataset] = {}
        self._id_paths = [header.main, *(f"views/{view}" for view in header.views)]
        self._checksums = ContentsChecksums()
        for name in self._id_paths:
            self._rows_dataset(name, (n, *header.row_shape), header.row_dtype)
        self._contiguous("labels", (n,), np.dtype("<i4"))
        self._text("keys", n, self._key_bytes)
        if header.class_names:
            self._create_class_names([name.encode() for name in header.class_names])
        for view, preprocessing in header.views.items():
            self._file[f"views/{view}"].attrs["preprocessing"] = json.dumps(preprocessing, ensure_ascii=False)

    def _create_class_names(self, names: list[bytes]) -> None:
        width = max(map(len, names))
        self._text("class_names", len(names), max(width, 1))
        self._write("class_names", _as_bytes(names, width))

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
        settings.set_obj_track_times(False)  # the same contents give the same file
        links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
        links.set_create_intermediate_group(True)
        space = h5py.h5s.create_simple(shape)
        kind = h5py.h5t.py_create(dtype, logical=True)
        h5py.h5d.create(self._file.id, name.encode(), kind, space, dcpl=settings, lcpl=links)

    def _text(self, name: str, rows: int, width: int) -> None:
        kind = h5py.string_dtype("utf-8", width)
        # A chunk stays in the library's cache of 1 MiB until it is full, so that it is compressed once.
        chunks = (min(rows, _CHUNK_ROWS, max(_CHUNK_BYTES // width, 1)),)
        self._file.create_dataset(name, (rows,), kind, chunks=chunks, compression="gzip", fletcher32=True)

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

    def _write(self, name: str, block: np.ndarray) -> None:
        # Closing a dataset flushes its chunks, half-filled ones too, which are deflated again with the next block.
        if name not in self._open:
            self._open[name] = self._file[name]
        self._open[name][self._done : self._done + len(block)] = block
        self._checksums.update(name, block)

    def _finish(self) -> None:
        header, root = self._header, self._file.attrs
        checksums = self._file.create_group("checksums")
        for name in self._id_paths:
            checksums[name] = np.array(self._checksums.crcs(name), dtype="<u4")
        checksums.attrs["rows_per_crc"] = ROWS_PER_CRC
        checksums.attrs["sha256"] = self._checksums.sha256()
        root["format"], root["format_version"] = FORMAT, FORMAT_VERSION
        for name in ("tokenizer", "preprocessing", "source", "made_with"):
            root[name] = json.dumps(getattr(header, name), ensure_ascii=False)
        for name in ("encoder_sha256", "weights_sha256", "codebook_size", "num_latent_tokens", "image_size"):
            root[name] = getattr(header, name)
        if header.token_size:
            root["token_size"] = header.token_size
        root["created_by"] = header.created_by or f"titokctl {__version__}"
        if header.num_rejected is not None:
            root["num_rejected"] = header.num_rejected
        if header.terms:
            root["terms"] = header.terms
        self._file.flush()
        root["complete"] = 1
        self._file.flush()


def _as_bytes(keys: Sequence[str | bytes] | np.ndarray, width: int) -> np.ndarray:
    """Return keys as (n,) UTF-8 of `width` bytes. Raises ValueError for one that is empty or too long."""
    if not isinstance(keys, np.ndarray) or keys.dtype.kind != "S":
        encoded = [key.encode() if isinstance(key, str) else bytes(key) for key in keys]
        keys = np.array(encoded, dtype=f"S{max([width, *map(len, encoded)])}")
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
    else:
        lengths = np.char.str_len(keys)
    zeros = keys.itemsize - np.count_nonzero(keys.reshape(-1, 1).view(np.uint8), axis=1)
    wrong = (lengths < 1) | (lengths > width) | (zeros != keys.itemsize - lengths)
    if wrong.any():
        raise ValueError(f"a key must have 1 to {width} bytes and no zero byte, got {keys[wrong][0]!r}")
    return keys.astype(h5py.string_dtype("utf-8", width))
