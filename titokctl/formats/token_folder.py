"""A token cache that stays a folder of parts: for collections too large for one file.

Specification: the folder is as `token_parts` says, finished when its manifest has complete = 1, and then also `rows`
(the number of rows of each unit's part, in order), `num_rejected`, and `sha256`, that of the same rows in one file
(`token_cache`). Row i is counted through the units in order. Parts are checked when they are read.
"""

import operator
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np

from titokctl.errors import UserError
from titokctl.formats.token_cache import TokenCache, check_labels
from titokctl.formats.token_checksums import ContentsChecksums
from titokctl.formats.token_header import CacheHeader
from titokctl.formats.token_parts import MANIFEST, PartsFolder, Tally, TokenPart, all_parts

_PARTS_KEPT = 64
_AGAIN = "run the `titokctl tokenize` command that began it again"


class PartedRows:
    """Rows of many parts as one array: `a[i]`, `a[i:j]`, `a[array]` and `np.asarray(a)` read the parts concerned."""

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


def open_folder(path: Path) -> TokenCache:
    """The token cache in the folder `path`. Raises UserError when it is none, unfinished, or damaged."""
    folder = PartsFolder(path, keep=True)
    if not (path / MANIFEST).is_file():
        raise UserError(
            f"{path} is a folder, but not a token cache", "name a file such as tokens.h5, or a folder of parts"
        )
    manifest = folder.manifest()
    if not manifest.get("complete"):
        raise UserError(f"{path} was never finished", _AGAIN)
    header, rows, sha256 = _header(path, manifest), manifest.get("rows"), manifest.get("sha256")
    if not isinstance(rows, list) or not all(isinstance(n, int) and n >= 0 for n in rows) or sum(rows) < 1:
        raise UserError(f"the manifest of {path} does not say how many rows each part has", _AGAIN)
    if not isinstance(sha256, str):
        raise UserError(f"the manifest of {path} has no sha256", _AGAIN)
    ends = np.cumsum(np.array(rows, np.int64))

    @lru_cache(_PARTS_KEPT)
    def part(unit: int) -> TokenPart:
        return _checked(folder, unit, header, rows[unit])

    def array(of: Callable[[TokenPart], np.ndarray]) -> np.ndarray:
        # Not an ndarray, but all that readers do with one works.
        return cast(np.ndarray, PartedRows(lambda unit: of(part(unit)), ends, header.row_shape, header.row_dtype))

    main = array(lambda part: part.ids)
    views = {name: array(lambda part, name=name: part.views[name]) for name in header.views}  # type: ignore[misc]

    def labels() -> np.ndarray:
        found = np.concatenate([part(u).labels for u in range(len(rows))])
        check_labels(path, found, len(header.class_names))
        return found

    def keys() -> np.ndarray:
        return np.concatenate([part(u).keys for u in range(len(rows))])

    return TokenCache(path, header, main, views, labels, keys, sha256)


def finish_folder(
    folder: PartsFolder, header: CacheHeader, num_units: int, tally: Tally, advance: Callable[[int], None]
) -> str:
    """Read every part, then say in the manifest that the folder is complete.

    Returns the checksum of contents.

    Raises UserError when a part is missing or damaged.
    """
    rows: list[int] = []

    def parts() -> Iterator[TokenPart]:
        for part in all_parts(folder, num_units):
            rows.append(len(part))
            yield part
            advance(len(part))

    sha256 = _contents_sha256(parts(), header, tally.key_bytes)
    folder.complete({"rows": rows, "num_rejected": tally.rejected, "sha256": sha256})
    return sha256


def damaged_parts(path: Path, advance: Callable[[int], None]) -> list[str]:
    """Check every part of a folder that `open_folder` accepts; one sentence for each that is not as it was."""
    folder = PartsFolder(path, keep=True)
    manifest = folder.manifest()
    header, problems = _header(path, manifest), []
    for unit, rows in enumerate(manifest["rows"]):
        try:
            _checked(folder, unit, header, rows)
        except UserError as error:
            problems.append(error.message)
        advance(rows * (1 + len(header.views)))
    if not problems:
        parts = (_checked(folder, unit, header, rows) for unit, rows in enumerate(manifest["rows"]))
        width = max(summary.key_bytes for u in range(len(manifest["rows"])) if (summary := folder.summary(u)))
        if _contents_sha256(parts, header, width) != manifest["sha256"]:
            problems.append(f"the parts of {path} are not those it was finished with")
    return problems


def _checked(folder: PartsFolder, unit: int, header: CacheHeader, rows: int) -> TokenPart:
    """The part of `unit` if it fits the header. Raises UserError otherwise."""
    part = folder.read(unit)
    if part is None:
        raise UserError(f"{folder.file(unit)} is missing", _AGAIN)
    arrays = [part.ids, *part.views.values()]
    fits = part.views.keys() == header.views.keys() and part.labels.dtype == np.dtype("<i4")
    if not fits or any(a.dtype != header.row_dtype or a.shape != (rows, *header.row_shape) for a in arrays):
        raise UserError(f"{folder.file(unit)} does not fit the manifest beside it", _AGAIN)
    return part


def _contents_sha256(parts: Iterator[TokenPart], header: CacheHeader, key_bytes: int) -> str:
    """The checksum that a file of these rows would have."""
    sums = ContentsChecksums()
    for part in parts:
        arrays = {header.main: part.ids, "labels": part.labels, "keys": part.keys.astype(f"S{key_bytes}")}
        for name, array in (arrays | {f"views/{v}": rows for v, rows in part.views.items()}).items():
            sums.update(name, array)
    if header.class_names:
        names = [name.encode() for name in header.class_names]
        sums.update("class_names", np.array(names, f"S{max(1, *map(len, names))}"))
    return sums.sha256()


def _header(path: Path, manifest: dict[str, Any]) -> CacheHeader:
    """The header in a manifest of unknown origin."""
    try:
        fields = dict(manifest["header"]) | {"num_rejected": manifest.get("num_rejected")}
        header = CacheHeader(**fields | {"class_names": tuple(fields.get("class_names", ()))})
    except (TypeError, ValueError) as error:
        raise UserError(f"the manifest of {path} has no header of a token cache", _AGAIN) from error
    counts = (header.codebook_size, header.num_latent_tokens, header.image_size, header.token_size)
    objects = (header.tokenizer, header.preprocessing, header.source, header.views, header.made_with)
    texts = (header.encoder_sha256, header.weights_sha256, header.created_by, header.terms, *header.class_names)
    good = all(isinstance(n, int) and n >= 0 for n in counts) and all(isinstance(o, dict) for o in objects)
    good = good and all(isinstance(t, str) for t in texts) and header.num_latent_tokens > 0 and header.image_size > 0
    if not good or (header.codebook_size > 0) == (header.token_size > 0) or any("/" in name for name in header.views):
        raise UserError(f"the manifest of {path} has no header of a token cache", _AGAIN)
    return header


def _is_index(wanted: Any) -> bool:
    return isinstance(wanted, int | np.integer) and not isinstance(wanted, bool)
