"""The token cache: ids of every image, its label, its key, and what made them; for readers, whatever its form on disk.

A cache is one HDF5 file (`token_file` has the specification) or, where it is too large for one file, a folder of parts
(`token_folder`). `TokenCache.open` is the one way to open either. N images, K latent tokens, V codebook size, C token
size.
"""

import mmap
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from titokctl.errors import UserError
from titokctl.formats.object_store import is_store, path_of
from titokctl.formats.token_file import TokenFile
from titokctl.formats.token_folder import TokenFolder
from titokctl.formats.token_header import PLAIN, CacheHeader, RowBlock, StoredCache
from titokctl.formats.token_keys import Keys

__all__ = ["PLAIN", "CacheHeader", "TokenCache", "labelled_rows"]

_ROWS_AT_ONCE = 1 << 18
_LARGE_BYTES = 256 << 20


class TokenCache:
    """A finished token cache, checked and memory-mapped; safe to use on a file of unknown origin.

    `ids` (N, K) and every view are maps of the file, shared by all processes and not limited by memory; writing to
    them never reaches the file. Nothing of the file stays open but these maps. Of a folder of parts they are arrays
    that read a part when its rows are indexed (`token_folder.PartedRows`).
    """

    def __init__(self, stored: StoredCache) -> None:
        self._stored = stored
        self.path, self.header, self.sha256 = stored.path, stored.header, stored.sha256
        self.rows, self._views = stored.rows, stored.views

    @classmethod
    def open(cls, path: Path | str, check_ids: bool = True) -> "TokenCache":
        """Open `path` and check its structure, types, sizes and attributes.

        Args:
            path: a token cache: a file, a folder of parts, or the address of one in an object store.
            check_ids: also read all ids once and refuse any that is not below V.

        Raises UserError with one sentence for anything that is not a whole, well-formed cache of a known version.
        """
        path = path_of(path)
        cache = cls(TokenFolder(path) if is_store(path) or path.is_dir() else TokenFile(path))
        if check_ids:
            cache.check_ids()
        return cache

    @classmethod
    def open_whole(cls, path: Path | str) -> "TokenCache":
        """Open `path` as `open` does, and compare all contents with their checksums.

        Whatever makes a new product of a cache opens it so: damage that was copied would have valid checksums.
        """
        cache = cls.open(path, check_ids=False)
        cache.check_contents()
        cache.check_ids()
        return cache

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
        """Return the rows of one view; "plain" is /tokens or /latents. Raises UserError for an unknown view."""
        if name == PLAIN:
            return self.rows
        if name not in self._views:
            raise UserError(f"{self.path} has no view {name!r}; it has {', '.join(self.views)}")
        return self._views[name]

    @cached_property
    def labels(self) -> np.ndarray:
        """Labels (N,) int32, -1 for none."""
        return self._stored.read_labels()

    @cached_property
    def keys(self) -> Keys:
        """The keys of all rows as UTF-8 bytes, read at first use."""
        return self._stored.read_keys()

    def key(self, row: int) -> str:
        """Return the key of one row as text."""
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

    @property
    def form(self) -> str:
        """The form on disk in words: "token cache" or "token cache in parts"."""
        return self._stored.form

    @property
    def num_bytes(self) -> int:
        """The size on disk in bytes."""
        return self._stored.num_bytes()

    @property
    def key_room(self) -> int:
        """A number of bytes that all keys together don't exceed."""
        return self._stored.key_room()

    def blocks(self) -> Iterator[RowBlock]:
        """Yield all rows in order, some 65,536 at a time, in memory that does not grow with the cache."""
        for block in self._stored.blocks():
            yield block
            self.release()

    def damage(self, advance: Callable[[int], None]) -> list[str]:
        """Read everything and return one sentence for each thing that changed since it was written; [] if nothing did.

        Args:
            advance: called with the number of rows read since, counted in each view.
        """
        return self._stored.damage(advance)

    def check_contents(self) -> None:
        """Compare all contents with their checksums. Raises UserError when some changed."""
        wrong = self.damage(lambda rows: None)
        self.release()
        if wrong:
            raise UserError(
                f"{self.path} is damaged: {wrong[0]} since it was written",
                f"fetch or make it again; `titokctl verify {self.path}` lists all changes",
            )

    def release(self) -> None:
        """Return the memory of mapped rows to the system; they are read again when they are needed.

        A process that reads a large cache once needs little memory this way. Writes to the arrays are lost.
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
                raise UserError(f"row {row} of view {name!r} in {self.path} holds a latent that is not finite")
        elif block.max() >= self.codebook_size:
            i = int((block >= self.codebook_size).any(axis=1).argmax())
            raise UserError(
                f"row {first + i} of view {name!r} in {self.path} holds the id {int(block[i].max())}, but the "
                f"codebook has only {self.codebook_size} codes",
                "the file is damaged: fetch or make it again; `titokctl verify` lists all changes",
            )


def labelled_rows(labels: Any, least: int = 0) -> np.ndarray:
    """Return the number of rows of each label, for at least `least` labels; negative labels stand for none."""
    known = np.asarray(labels)
    return np.bincount(known[known >= 0], minlength=least)
