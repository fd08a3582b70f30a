"""A token cache that stays a folder of parts: for collections too large for one file.

Specification: the folder is as `token_parts` says, finished when its manifest has complete = 1, and then also `rows`
(the number of rows of each unit's part, in order), `num_rejected`, `sha256`, that of the same rows in one file
(`token_file`), and `checksum`, the SHA-256 of all other fields as compact JSON with sorted keys. Its format_version is
then 2; in 1 there was no `checksum`, and `sha256` was that of a file of format_version 1. Row i is counted through the
units in order. Parts are checked when they are read.
"""

import json
import operator
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np

from titokctl.errors import UserError
from titokctl.formats.token_header import (
    ROWS_PER_CRC,
    CacheHeader,
    ContentsChecksums,
    RowBlock,
    StoredCache,
    check_labels,
    checked_header,
)
from titokctl.formats.token_keys import Keys
from titokctl.formats.token_parts import PartsFolder, TokenPart, all_parts
from titokctl.formats.token_store import parts_at

_PARTS_KEPT = 64
_AGAIN = "run the `titokctl tokenize` command that made it again"


class PartedRows:
    """The rows of many parts as one array. `a[i]`, `a[i:j]`, `a[array]` and `np.asarray(a)` read what they need."""

    def __init__(self, part: Callable[[int], np.ndarray], ends: np.ndarray, row_shape: tuple[int, ...], dtype: Any):
        self._part, self._ends = part, ends
        self.shape, self.dtype = (int(ends[-1]) if len(ends) else 0, *row_shape), np.dtype(dtype)
        self.ndim = len(self.shape)
        self.itemsize = self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return int(np.prod(self.shape, dtype=object)) * self.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, wanted: Any) -> np.ndarray:
        if isinstance(wanted, tuple):
            return self[wanted[0]][(slice(None), *wanted[1:]) if not _is_index(wanted[0]) else wanted[1:]]
        if _is_index(wanted):
            return self._gather(np.array([operator.index(wanted)]))[0]
        if isinstance(wanted, slice):
            first, last, step = wanted.indices(len(self))
            return self._range(first, max(first, last)) if step == 1 else self._gather(np.arange(first, last, step))
        rows = np.asarray(wanted)
        return self._gather(np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self._range(0, len(self)).astype(dtype or self.dtype, copy=False)

    def _range(self, first: int, last: int) -> np.ndarray:
        out = np.empty((last - first, *self.shape[1:]), self.dtype)
        done = first
        while done < last:
            unit = int(np.searchsorted(self._ends, done, side="right"))
            begin, end = int(self._ends[unit - 1]) if unit else 0, min(int(self._ends[unit]), last)
            out[done - first : end - first] = self._part(unit)[done - begin : end - begin]
            done = end
        return out

    def _gather(self, rows: np.ndarray) -> np.ndarray:
        rows = np.where(rows < 0, rows + len(self), rows)
        if rows.size and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {len(self)}")
        out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        units = np.searchsorted(self._ends, rows, side="right")
        for unit in np.unique(units).tolist():
            here = units == unit
            out[here] = self._part(unit)[rows[here] - (int(self._ends[unit - 1]) if unit else 0)]
        return out


class TokenFolder(StoredCache):
    """A token cache in a folder of parts, which are checked when they are read.

    Raises UserError when the folder is not a token cache, or is unfinished or damaged.
    """

    form = "token cache in parts"

    def __init__(self, path: Path) -> None:
        self.path, self._folder = path, parts_at(path, keep=True, keeps_copies=True)
        if not self._folder.is_begun():
            raise UserError(
                f"{path} is a folder, but not a token cache", "name a file such as tokens.h5, or a folder of parts"
            )
        manifest = self._folder.manifest()
        if not manifest.complete:
            raise UserError(f"{path} was never finished", _AGAIN)
        self.header = _header(self._folder)
        self.sha256, self._counts, self._version = manifest.sha256, manifest.rows, manifest.format_version
        ends = np.cumsum(np.array(self._counts, np.int64))
        if not len(ends) or ends[-1] < 1:
            raise UserError(f"{path} has no rows", _AGAIN)
        self._part = lru_cache(_PARTS_KEPT)(self._read)

        def array(of: Callable[[TokenPart], np.ndarray]) -> np.ndarray:
            shape, dtype = self.header.row_shape, self.header.row_dtype
            # Not an ndarray, but all that readers do with one works.
            return cast(np.ndarray, PartedRows(lambda unit: of(self._part(unit)), ends, shape, dtype))

        self.rows = array(lambda part: part.ids)
        self.views = {n: array(lambda part, n=n: part.views[n]) for n in self.header.views}  # type: ignore[misc]

    def read_labels(self) -> np.ndarray:
        found = np.concatenate([self._part(unit).labels for unit in range(len(self._counts))])
        check_labels(self.path, found, len(self.header.class_names))
        return found

    def read_keys(self) -> Keys:
        return Keys.joined([Keys.of(self._part(unit).keys) for unit in range(len(self._counts))])

    def key_room(self) -> int:
        found = (self._folder.summary(unit) for unit in range(len(self._counts)))
        return sum(one.rows * one.key_bytes for one in found if one is not None)

    def blocks(self) -> Iterator[RowBlock]:
        held: list[TokenPart] = []
        for unit in range(len(self._counts)):
            held.append(self._read(unit))
            if sum(map(len, held)) >= ROWS_PER_CRC:
                yield self._joined(held)
                held = []
        if held:
            yield self._joined(held)

    def _joined(self, parts: list[TokenPart]) -> RowBlock:
        labels = np.concatenate([part.labels for part in parts])
        check_labels(self.path, labels, len(self.header.class_names))
        rows = np.concatenate([part.ids for part in parts])
        views = {name: np.concatenate([part.views[name] for part in parts]) for name in self.header.views}
        return RowBlock(rows, labels, Keys.joined([Keys.of(part.keys) for part in parts]), views)

    def num_bytes(self) -> int:
        return self._folder.num_bytes()

    def damage(self, advance: Callable[[int], None]) -> list[str]:
        problems: list[str] = []

        def intact() -> Iterator[TokenPart]:
            for unit, rows in enumerate(self._counts):
                try:
                    yield self._read(unit)
                except UserError as error:
                    problems.append(error.message)
                advance(rows * (1 + len(self.header.views)))

        if self._version > 1:
            found = _contents_sha256(intact(), self.header)
        else:
            summaries = (self._folder.summary(unit) for unit in range(len(self._counts)))
            width = max((one.key_bytes for one in summaries if one is not None), default=1)
            found = _first_contents_sha256(intact(), self.header, width)
        if not problems and found != self.sha256:
            problems.append(f"the parts of {self.path} are not those it was finished with")
        return problems

    def _read(self, unit: int) -> TokenPart:
        """Return the part of `unit` if it fits the header. Raises UserError otherwise."""
        part, header = self._folder.read(unit), self.header
        if part is None:
            raise UserError(f"{self._folder.file(unit)} is missing", _AGAIN)
        arrays, shape = [part.ids, *part.views.values()], (self._counts[unit], *header.row_shape)
        fits = part.views.keys() == header.views.keys() and part.labels.dtype == np.dtype("<i4")
        if not fits or any(a.dtype != header.row_dtype or a.shape != shape for a in arrays):
            raise UserError(f"{self._folder.file(unit)} does not fit the manifest beside it", _AGAIN)
        return part


def finish_folder(
    folder: PartsFolder, header: CacheHeader, num_units: int, num_rejected: int | None, advance: Callable[[int], None]
) -> str:
    """Read every part, then record in the manifest that the folder is complete; return the checksum of the contents.

    Args:
        num_rejected: images without a row; None when that is not known.
        advance: called with the number of rows read since.

    Raises UserError when a part is missing or damaged.
    """
    rows: list[int] = []

    def parts() -> Iterator[TokenPart]:
        for part in all_parts(folder, num_units):
            rows.append(len(part))
            yield part
            advance(len(part))

    sha256 = _contents_sha256(parts(), header)
    # Only now the counts are known, and of a pipeline (`titokctl.ray.TokenSink`) the number of units.
    whole = {"num_units": num_units, "header": json.loads(json.dumps(asdict(header))), "rows": rows}
    folder.complete(whole | {"num_rejected": num_rejected, "sha256": sha256})
    return sha256


def _contents_sha256(parts: Iterator[TokenPart], header: CacheHeader) -> str:
    """Return the checksum that a file of these rows would have."""
    sums, key_bytes = ContentsChecksums(), 0
    for part in parts:
        keys = Keys.of(part.keys)
        arrays = {header.main: part.ids, "labels": part.labels, "keys": keys.data}
        arrays["key_ends"] = (keys.ends + key_bytes).astype("<u8")
        key_bytes += len(keys.data)
        for name, array in (arrays | {f"views/{v}": rows for v, rows in part.views.items()}).items():
            sums.update(name, array)
    names = json.dumps(list(header.class_names), ensure_ascii=False)
    sums.update("class_names", np.frombuffer(names.encode(), np.uint8))
    return sums.sha256()


def _first_contents_sha256(parts: Iterator[TokenPart], header: CacheHeader, key_bytes: int) -> str:
    """Return the checksum that a file of format_version 1 with these rows would have."""
    sums = ContentsChecksums()
    for part in parts:
        arrays = {header.main: part.ids, "labels": part.labels, "keys": part.keys.astype(f"S{key_bytes}")}
        for name, array in (arrays | {f"views/{v}": rows for v, rows in part.views.items()}).items():
            sums.update(name, array)
    if header.class_names:
        names = [name.encode() for name in header.class_names]
        sums.update("class_names", np.array(names, f"S{max(1, *map(len, names))}"))
    return sums.sha256()


def _header(folder: PartsFolder) -> CacheHeader:
    manifest = folder.manifest()
    fields = manifest.header | {"num_rejected": manifest.num_rejected}
    return checked_header(fields, lambda name: f"the header's {name} in the manifest of {folder.path}")


def _is_index(wanted: Any) -> bool:
    return isinstance(wanted, int | np.integer) and not isinstance(wanted, bool)
