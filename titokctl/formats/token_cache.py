"""The token cache: one HDF5 file with the ids of every image, its label, its key, and what made them.

Specification (the full text with an example is docs/formats.md). N images, K latent tokens, V codebook size, C token
size.

    /tokens              (N, K) uint16, uint32 when V > 65,536; contiguous, little-endian; row i is image i's plain crop
    /latents             instead of /tokens, of a Gaussian tokenizer: (N, K, C) float16, the means
    /views/<name>        same shape and type: other crops of the same images; attribute `preprocessing` (JSON)
    /labels              (N,) int32, contiguous; -1 for none
    /keys                (N,) fixed-length UTF-8 bytes, padded with zero bytes; chunked, gzip + fletcher32
    /class_names         (classes,) the same kind of text; absent when there are no names
    /checksums           attributes `sha256`, `rows_per_crc`; below it, for /tokens and each /views/<name>, a dataset
                         of the same path: (ceil(N / 65,536),) uint32, the CRC-32 of every 65,536 rows

Root attributes: format "titokctl/token-cache", format_version 1, tokenizer (config, JSON), encoder_sha256,
weights_sha256, codebook_size (0 with /latents), num_latent_tokens, image_size, preprocessing (JSON), source (JSON),
created_by, with /latents token_size, and complete = 1, which is written after everything else; made_with (JSON),
num_rejected and terms (text) may be there. `sha256` covers the contents: the SHA-256 of one line a dataset, sorted by
path, "<path> <numpy type> <n,n> <sha256 of its bytes>\\n".
A writer (`token_cache_writer`) works under a temporary name and renames the finished file; the target itself is never
opened for writing.
A collection too large for one file stays a folder of parts (`token_folder`).
"""

import mmap
from collections.abc import Callable
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from titokctl.errors import UserError
from titokctl.formats import hdf5_checks
from titokctl.formats.token_header import CacheHeader, read_header, text_dataset

__all__ = ["PLAIN", "CacheHeader", "TokenCache"]

PLAIN = "plain"  # the name of the view that /tokens itself is
_ROWS_AT_ONCE = 1 << 18
_LARGE_BYTES = 256 << 20


class TokenCache:
    """A finished token cache, checked and memory-mapped; safe to use on a file of unknown origin.

    `ids` (N, K) and every view are maps of the file, shared by all processes and not limited by memory; writing to
    them never reaches the file. Nothing of the file stays open but these maps. Of a folder of parts they are arrays
    that read a part when its rows are asked for (`token_folder.PartedRows`).
    """

    def __init__(
        self,
        path: Path,
        header: CacheHeader,
        rows: np.ndarray,
        views: dict[str, np.ndarray],
        read_labels: Callable[[], np.ndarray],
        read_keys: Callable[[], np.ndarray],
        sha256: str,
    ) -> None:
        self.path, self.header, self.sha256 = path, header, sha256
        self.rows, self._views = rows, views
        self._read_labels, self._read_keys = read_labels, read_keys

    @classmethod
    def open(cls, path: Path | str, check_ids: bool = True) -> "TokenCache":
        """Open `path` and check its structure, types, sizes and attributes.

        Args:
            path: a token cache: a file, or a folder of parts.
            check_ids: also read all ids once and refuse any that is not below V.

        Raises UserError with one sentence for anything that is not a whole, well-formed cache of a known version.
        """
        path = Path(path)
        if path.is_dir():
            from titokctl.formats.token_folder import open_folder

            cache = open_folder(path)
        else:
            cache = cls._open_file(path)
        if check_ids:
            cache.check_ids()
        return cache

    @classmethod
    def _open_file(cls, path: Path) -> "TokenCache":
        with hdf5_checks.opened(path) as file:
            header = read_header(file)
            rows = _read_rows(path, file, header.main, header)
            views = {name: _read_rows(path, file["views"], name, header) for name in header.views}
            wrong = [name for name, view in views.items() if len(view) != len(rows)]
            if wrong:
                many = f"{len(views[wrong[0]]):,} rows, /{header.main} {len(rows):,}"
                raise UserError(f"/views/{wrong[0]} of {path} has {many}")
            labels = _read_labels(path, file, len(rows), len(header.class_names))
            text_dataset(file, "keys", len(rows))
            checksums = hdf5_checks.subgroup(file, "checksums")
            if checksums is None:
                raise UserError(f"/checksums of {path} is missing")
            sha256 = str(hdf5_checks.attribute(checksums, "sha256", str))
        return cls(path, header, rows, views, lambda: labels, lambda: _read_keys(path, len(rows)), sha256)

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"TokenCache({str(self.path)!r}, rows={len(self)}, views={list(self.views)})"

    @property
    def is_discrete(self) -> bool:
        """True when rows are ids, False when they are latents."""
        return self.header.token_size == 0

    @property
    def ids(self) -> np.ndarray:
        """/tokens (N, K). Raises UserError for a cache of latents."""
        if not self.is_discrete:
            raise UserError(
                f"{self.path} holds latents of a Gaussian tokenizer, not ids", "make it with a tokenizer that has codes"
            )
        return self.rows

    @property
    def latents(self) -> np.ndarray:
        """/latents (N, K, C) float16. Raises UserError for a cache of ids."""
        if self.is_discrete:
            raise UserError(f"{self.path} holds ids, not latents", "make it with a Gaussian tokenizer")
        return self.rows

    @property
    def views(self) -> tuple[str, ...]:
        """Names of the views, "plain" (that is /tokens or /latents) first."""
        return (PLAIN, *self._views)

    def view(self, name: str) -> np.ndarray:
        """The rows of one view; "plain" is /tokens or /latents. Raises UserError for a view that is not there."""
        if name == PLAIN:
            return self.rows
        if name not in self._views:
            raise UserError(f"{self.path} has no view {name!r}; it has {', '.join(self.views)}")
        return self._views[name]

    @cached_property
    def labels(self) -> np.ndarray:
        """Labels (N,) int32, -1 for none."""
        return self._read_labels()

    @cached_property
    def keys(self) -> np.ndarray:
        """Keys (N,) as UTF-8 bytes (numpy type S), read at first use."""
        return self._read_keys()

    def key(self, row: int) -> str:
        """The key of one row as text."""
        return self.keys[row].decode()

    @property
    def class_names(self) -> list[str]:
        """Names of the labels from 0 on; empty when the source had none."""
        return list(self.header.class_names)

    @property
    def attrs(self) -> dict[str, Any]:
        """The root attributes by name, JSON ones parsed; `header` has the same as fields."""
        return {f.name: getattr(self.header, f.name) for f in fields(self.header)}

    @property
    def codebook_size(self) -> int:
        """V."""
        return self.header.codebook_size

    @property
    def num_latent_tokens(self) -> int:
        """K."""
        return self.header.num_latent_tokens

    def release(self) -> None:
        """Give the memory of mapped rows back to the system; they are read again when they are needed.

        Whoever goes through a large cache once stays small this way. What was written into the arrays is lost.
        """
        for name in self.views:
            mapped = getattr(self.view(name), "_mmap", None)
            if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
                mapped.madvise(mmap.MADV_DONTNEED)

    def check_ids(self) -> None:
        """Read every row once. Raises UserError when an id is not below the codebook size, or a latent not finite."""
        for name in self.views:
            rows = self.view(name)
            if self.is_discrete and self.codebook_size > np.iinfo(rows.dtype).max:
                continue
            for first in range(0, len(rows), _ROWS_AT_ONCE):
                self._check_block(name, first, rows[first : first + _ROWS_AT_ONCE])
                if rows.nbytes > _LARGE_BYTES:
                    self.release()

    def _check_block(self, name: str, first: int, block: np.ndarray) -> None:
        if not self.is_discrete:
            if not np.isfinite(block).all():
                row = first + int((~np.isfinite(block)).any(axis=(1, 2)).argmax())
                raise UserError(f"row {row} of view {name!r} in {self.path} holds a latent that is no number")
        elif block.max() >= self.codebook_size:
            i = int((block >= self.codebook_size).any(axis=1).argmax())
            raise UserError(
                f"row {first + i} of view {name!r} in {self.path} holds the id {int(block[i].max())}, but the "
                f"codebook has only {self.codebook_size} codes",
                "the file is damaged: fetch or make it again; `titokctl verify` names all that changed",
            )


def _read_rows(path: Path, group: h5py.Group, name: str, header: CacheHeader) -> np.ndarray:
    found = hdf5_checks.dataset(group, name)
    if found.dtype != header.row_dtype:
        raise UserError(f"{found.name} of {path} is of type {found.dtype.str}, expected {header.row_dtype.str}")
    if found.shape[1:] != header.row_shape or len(found.shape) < 2 or found.shape[0] < 1:
        wanted = f"(rows, {', '.join(map(str, header.row_shape))}) with at least one row"
        raise UserError(f"{found.name} of {path} has the shape {found.shape}, expected {wanted}")
    return hdf5_checks.rows(path, found)


def _read_labels(path: Path, file: h5py.File, num_rows: int, num_classes: int) -> np.ndarray:
    found = hdf5_checks.dataset(file, "labels")
    if found.dtype != np.dtype("<i4") or found.shape != (num_rows,):
        got = f"{found.dtype.str} {found.shape}"
        raise UserError(f"/labels of {path} is {got}, expected <i4 ({num_rows},)")
    labels = hdf5_checks.rows(path, found)
    check_labels(path, labels, num_classes)
    return labels


def check_labels(path: Path, labels: np.ndarray, num_classes: int) -> None:
    """Raises UserError when labels (n,) are below -1, or have no name where there are names."""
    if not len(labels):
        return
    least, most = int(labels.min()), int(labels.max())
    if least < -1 or (num_classes and most >= num_classes):
        limit = f"-1 to {num_classes - 1}" if num_classes else "-1 or more"
        raise UserError(f"/labels of {path} reach from {least} to {most}, expected {limit}")


def _read_keys(path: Path, num_rows: int) -> np.ndarray:
    with hdf5_checks.opened(path) as file:
        return np.asarray(text_dataset(file, "keys", num_rows)[...])
