"""A token cache as one HDF5 file: the specification, and reading it.

Specification (the full text with an example is docs/formats.md). N images, K latent tokens, V codebook size, C token
size.

    /tokens              (N, K) uint16, uint32 when V > 65,536; contiguous, little-endian; row i is image i's plain crop
    /latents             instead of /tokens, of a Gaussian tokenizer: (N, K, C) float16, the means
    /views/<name>        same shape and type: other crops of the same images
    /labels              (N,) int32, contiguous; -1 for none
    /keys                (B,) uint8, all keys in UTF-8 one after the other; chunked, gzip + fletcher32
    /key_ends            (N,) uint64, where each key ends in /keys; chunked, gzip + shuffle + fletcher32
    /class_names         (...,) uint8, JSON: a list of names, [] without names
    /header              (...,) uint8, JSON: an object with the fields of `CacheHeader` but class_names
    /checksums           attributes `sha256`, `header_sha256` (of the bytes of /header), `rows_per_crc`; below it, for
                         each dataset but /header, a dataset of the same path: the CRC-32 of every 65,536 of its rows,
                         uint32

The root has three attributes: format "titokctl/token-cache", format_version 2, and complete = 1, which is written after
everything else. Text in attributes has fixed length, and the file has the layout of HDF5 1.10, which has checksums of
its own structure. `sha256` covers the contents: the SHA-256 of one line a dataset but /header, sorted by path,
"<path> <numpy type> <n,n> <sha256 of its bytes>\\n".

Files of format_version 1 are read, too. They have no /header: its fields are root attributes of variable length, and
each view has an attribute `preprocessing`. /keys and /class_names are text of fixed length, padded with zero bytes, and
only the rows have CRC-32s.
A writer (`token_cache_writer`) works under a temporary name and renames the finished file; the target itself is never
opened for writing.
"""

import contextlib
import errno
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from pydantic import Json, TypeAdapter

from titokctl.errors import UserError, fault_in_words
from titokctl.formats import hdf5_checks
from titokctl.formats.atomic import check_version
from titokctl.formats.token_header import (
    ROWS_PER_CRC,
    CacheHeader,
    ContentsChecksums,
    RowBlock,
    StoredCache,
    check_labels,
    checked,
    checked_header,
)
from titokctl.formats.token_keys import LONGEST_KEY, Keys

FORMAT = "titokctl/token-cache"
FORMAT_VERSION = 2
LIBRARY = ("v110", "v110")
_JSON: TypeAdapter[dict[str, Any]] = TypeAdapter(Json[dict[str, Any]])
_JSON_LIST: TypeAdapter[list[Any]] = TypeAdapter(Json[list[Any]])
_KEY_BLOCK = 64 << 20
_KEYS_PER_BYTE = 200  # bytes of keys that a byte of the file may stand for, deflated
_JSON_NAMES = ("tokenizer", "preprocessing", "source", "made_with")


class TokenFile(StoredCache):
    """A token cache in one HDF5 file, with its rows memory-mapped.

    Raises UserError, with one sentence, unless the file is whole, well-formed and of a known version.
    """

    form = "token cache"

    def __init__(self, path: Path) -> None:
        self.path = path
        with hdf5_checks.opened(path) as file:
            self.header = read_header(file)
            self.rows = self._rows(file, self.header.main)
            self.views = {name: self._rows(file["views"], name) for name in self.header.views}
            wrong = [name for name, view in self.views.items() if len(view) != len(self.rows)]
            if wrong:
                many = f"{len(self.views[wrong[0]]):,} rows, /{self.header.main} {len(self.rows):,}"
                raise UserError(f"/views/{wrong[0]} of {path} has {many}")
            self._labels = self._read_labels(file)
            _key_datasets(file, len(self.rows))
            self.sha256 = str(hdf5_checks.attribute(_checksums(file), "sha256", str))

    def read_labels(self) -> np.ndarray:
        return self._labels

    def read_keys(self) -> Keys:
        with hdf5_checks.opened(self.path) as file:
            return _read_keys(file, len(self.rows))

    def key_room(self) -> int:
        with hdf5_checks.opened(self.path) as file:
            keys, ends = _key_datasets(file, len(self.rows))
            return len(keys) * (keys.dtype.itemsize if ends is None else 1)

    def blocks(self) -> Iterator[RowBlock]:
        with hdf5_checks.opened(self.path) as file:
            begin = 0
            for first in range(0, len(self.rows), ROWS_PER_CRC):
                here = slice(first, first + ROWS_PER_CRC)
                keys, begin = _keys_between(file, here, len(self.rows), begin)
                views = {name: rows[here] for name, rows in self.views.items()}
                yield RowBlock(self.rows[here], self._labels[here], keys, views)

    def num_bytes(self) -> int:
        return self.path.stat().st_size

    def damage(self, advance: Callable[[int], None]) -> list[str]:
        return _damage(self.path, advance)

    def _rows(self, group: h5py.Group, name: str) -> np.ndarray:
        found, header = hdf5_checks.dataset(group, name), self.header
        if found.dtype != header.row_dtype:
            raise UserError(
                f"{found.name} of {self.path} is of type {found.dtype.str}, expected {header.row_dtype.str}"
            )
        if found.shape[1:] != header.row_shape or len(found.shape) < 2 or found.shape[0] < 1:
            wanted = f"(rows, {', '.join(map(str, header.row_shape))}) with at least one row"
            raise UserError(f"{found.name} of {self.path} has the shape {found.shape}, expected {wanted}")
        return hdf5_checks.rows(self.path, found)

    def _read_labels(self, file: h5py.File) -> np.ndarray:
        found, num_rows = hdf5_checks.dataset(file, "labels"), len(self.rows)
        if found.dtype != np.dtype("<i4") or found.shape != (num_rows,):
            got = f"{found.dtype.str} {found.shape}"
            raise UserError(f"/labels of {self.path} is {got}, expected <i4 ({num_rows},)")
        labels = hdf5_checks.rows(self.path, found)
        check_labels(self.path, labels, len(self.header.class_names))
        return labels


def read_header(file: h5py.File) -> CacheHeader:
    """Return the header of an open token cache.

    Raises UserError for another kind of file, and for one that is unfinished, too new, or damaged.
    """
    path = file.filename
    if file.attrs.get("format") is None:
        raise UserError(f"{path} is an HDF5 file, but not a token cache")
    found = hdf5_checks.attribute(file, "format", str)
    if found != FORMAT:
        raise UserError(f"{path} holds {found!r}, not a token cache")
    check_version(hdf5_checks.attribute(file, "format_version", int), FORMAT_VERSION, path, "token cache")
    if "complete" not in file.attrs or not hdf5_checks.attribute(file, "complete", int):
        raise UserError(f"{path} was never finished", "make it again with `titokctl tokenize`")
    hdf5_checks.names_of(file)
    return _first_header(file) if _version(file) == 1 else _header(file)


def _version(file: h5py.File) -> int:
    return int(hdf5_checks.attribute(file, "format_version", int))


def _header(file: h5py.File) -> CacheHeader:
    """Return the header in /header and /class_names, whose bytes are compared with the recorded hash."""
    path = file.filename
    text = hdf5_checks.text(file, "header")
    claimed = hdf5_checks.attribute(_checksums(file), "header_sha256", str)
    if hashlib.sha256(text.encode()).hexdigest() != claimed:
        raise UserError(f"/header of {path} changed since the file was written")
    fields = _parsed(text, f"/header of {path}")
    names: list[Any] = checked(_JSON_LIST, hdf5_checks.text(file, "class_names"), lambda _: f"/class_names of {path}")
    header = checked_header(fields | {"class_names": names}, lambda name: f"{name} in /header of {path}")
    views = hdf5_checks.subgroup(file, "views")
    if sorted(header.views) != ([] if views is None else hdf5_checks.names_of(views)):
        raise UserError(f"/views of {path} are not the views of its header")
    return replace(header, views=dict(sorted(header.views.items())))


def _first_header(file: h5py.File) -> CacheHeader:
    """Return the header of a file of format_version 1, from its attributes."""
    path, views = file.filename, hdf5_checks.subgroup(file, "views")
    names = [] if views is None else hdf5_checks.names_of(views)

    def where(name: str) -> str:
        return f"attribute {name} of {path}"

    known = {one.name for one in fields(CacheHeader)} - {"views", "class_names"}
    values = hdf5_checks.attributes(file, known)
    values |= {name: _parsed(values[name], where(name)) for name in _JSON_NAMES if name in values}
    # A file of latents may say anything about a codebook, and a file of ids about the size of a latent.
    values["codebook_size" if "latents" in file else "token_size"] = 0
    values["views"] = {name: _preprocessing(views, name) for name in names}
    return checked_header(values | {"class_names": _class_names(file)}, where)


def _checksums(file: h5py.File) -> h5py.Group:
    found = hdf5_checks.subgroup(file, "checksums")
    if found is None:
        raise UserError(f"/checksums of {file.filename} is missing")
    return found


def _key_datasets(file: h5py.File, num_rows: int) -> tuple[h5py.Dataset, h5py.Dataset | None]:
    """Return /keys and /key_ends, their types checked; of format_version 1 the text in /keys, and None."""
    if _version(file) == 1:
        return text_dataset(file, "keys", num_rows), None
    keys, ends = hdf5_checks.dataset(file, "keys"), hdf5_checks.dataset(file, "key_ends")
    if keys.dtype != np.dtype("u1") or len(keys.shape) != 1:
        raise UserError(f"/keys of {file.filename} is {keys.dtype.str} {keys.shape}, expected |u1 (bytes,)")
    if ends.dtype != np.dtype("<u8") or ends.shape != (num_rows,):
        raise UserError(f"/key_ends of {file.filename} is {ends.dtype.str} {ends.shape}, expected <u8 ({num_rows},)")
    if len(keys) > num_rows * LONGEST_KEY or len(keys) > _KEYS_PER_BYTE * Path(file.filename).stat().st_size:
        raise UserError(f"/keys of {file.filename} declares {len(keys):,} bytes, out of proportion to the file")
    return keys, ends


def _read_keys(file: h5py.File, num_rows: int) -> Keys:
    """Return all keys. Raises UserError for any that is empty, too long, or not UTF-8."""
    found, ends = _key_datasets(file, num_rows)
    if ends is None:
        block = max(1, _KEY_BLOCK // found.dtype.itemsize)
        parts = (np.asarray(found[first : first + block]) for first in range(0, num_rows, block))
    with _damaged_keys(file):
        keys = Keys.joined([Keys.of(part) for part in parts]) if ends is None else Keys(found[:], _as_ends(ends[:]))
        _check_keys(keys)
    return keys


def _keys_between(file: h5py.File, rows: slice, num_rows: int, begin: int) -> tuple[Keys, int]:
    """Return the keys of some rows, the first of which begins at byte `begin` of /keys, and the byte behind the last.

    Raises UserError as `_read_keys`.
    """
    found, ends = _key_datasets(file, num_rows)
    with _damaged_keys(file):
        if ends is None:
            return Keys.of(np.asarray(found[rows])), 0
        here = _as_ends(ends[rows])
        keys = Keys(found[begin : int(here[-1])], here - begin)
        _check_keys(keys)
    return keys, int(here[-1])


@contextlib.contextmanager
def _damaged_keys(file: h5py.File) -> Iterator[None]:
    """Raise UserError in place of a ValueError about keys."""
    try:
        yield
    except ValueError as error:
        what = "a key is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise UserError(f"/keys of {file.filename} is damaged: {what}") from error


def _check_keys(keys: Keys) -> None:
    """Raise ValueError for keys that are empty, too long, or not UTF-8."""
    keys.check()
    keys.data.tobytes().decode()


def _as_ends(ends: np.ndarray) -> np.ndarray:
    """Return the ends of keys as int64. Raises ValueError for numbers that no file has."""
    if len(ends) and int(ends.max()) > 1 << 62:
        raise ValueError("the ends of the keys don't fit their bytes")
    return ends.astype(np.int64)


def _preprocessing(views: h5py.Group, name: str) -> dict[str, Any]:
    found = hdf5_checks.attribute(hdf5_checks.dataset(views, name), "preprocessing", str)
    return _parsed(found, f"attribute preprocessing of /views/{name} of {views.file.filename}")


def _parsed(text: Any, where: str) -> dict[str, Any]:
    value: dict[str, Any] = checked(_JSON, text, lambda _: where)
    return value


def _class_names(file: h5py.File) -> tuple[str, ...]:
    if "class_names" not in file:
        return ()
    try:
        return tuple(name.decode() for name in text_dataset(file, "class_names", None)[...])
    except UnicodeDecodeError as error:
        raise UserError(f"/class_names of {file.filename} is not UTF-8") from error


def text_dataset(group: h5py.Group, name: str, num_rows: int | None) -> h5py.Dataset:
    """Return the dataset `name`. Raises UserError unless it is fixed-length text, of `num_rows` rows if given."""
    found = hdf5_checks.dataset(group, name)
    if found.dtype.kind != "S" or len(found.shape) != 1 or num_rows not in (None, found.shape[0]):
        rows = "n" if num_rows is None else num_rows
        got = f"{found.dtype.str} {found.shape}"
        raise UserError(f"/{name} of {group.file.filename} is {got}, expected fixed-length text ({rows},)")
    return found


def _damage(path: Path, advance: Callable[[int], None]) -> list[str]:
    """Compare everything with the checksums, block by block, as `StoredCache.damage`."""
    with hdf5_checks.opened(path) as file:
        checksums, ids = _checksums(file), _datasets_of_rows(file)
        problems: list[str] = []
        found = ContentsChecksums()
        others = ("labels", *(name for name in ("class_names", "keys", "key_ends") if name in file))
        for name in (*ids, *others):
            for block in _blocks(hdf5_checks.dataset(*_at(file, name))):
                found.update(name, block)
                advance(len(block) if name in ids else 0)
            if name in ids or _version(file) > 1:
                problems += _wrong_blocks(checksums, name, found.crcs(name), len(file[name]))
        if found.sha256() != hdf5_checks.attribute(checksums, "sha256", str) and not problems:
            problems.append("labels, keys, class names or the checksum itself changed")
        return problems


def check_written(path: Path, wanted: ContentsChecksums) -> None:
    """Compare a file that was just written with the checksums of what was to be written.

    HDF5 writes text and its own structure when it closes them, where h5py drops errors of the disk. Rows are written at
    once, with their errors, so of them only the checksums are compared.

    Raises OSError when something is missing or differs.
    """
    try:
        cache = TokenFile(path)
        with hdf5_checks.opened(path) as file:
            rows, found = _datasets_of_rows(file), ContentsChecksums()
            for name in wanted.paths:
                if name not in rows:
                    for block in _blocks(hdf5_checks.dataset(*_at(file, name))):
                        found.update(name, block)
                crcs = (wanted if name in rows else found).crcs(name)
                if crcs != wanted.crcs(name) or _wrong_blocks(_checksums(file), name, crcs, len(file[name])):
                    raise UserError(f"/{name} differs")
        if cache.sha256 != wanted.sha256():
            raise UserError("the checksum differs")
    except UserError as error:
        if error.__cause__ is not None and fault_in_words(error.__cause__) is not None:
            raise error.__cause__ from error  # such as too many open files, which says nothing about this one
        raise OSError(errno.EIO, f"the file was not written as intended ({error.message})") from error


def _at(file: h5py.File, path: str) -> tuple[h5py.Group, str]:
    """Return the group that holds the dataset /path, and its name there."""
    folder, _, name = path.rpartition("/")
    return (file[folder] if folder else file), name


def _datasets_of_rows(file: h5py.File) -> list[str]:
    views = hdf5_checks.subgroup(file, "views")
    names = hdf5_checks.names_of(views) if views else ()
    return ["latents" if "latents" in file else "tokens", *(f"views/{name}" for name in names)]


def _blocks(found: h5py.Dataset) -> Iterator[np.ndarray]:
    for first in range(0, max(len(found), 1), ROWS_PER_CRC):
        yield found[first : first + ROWS_PER_CRC]


def _wrong_blocks(checksums: h5py.Group, name: str, found: list[int], num_rows: int) -> list[str]:
    group = checksums
    for part in name.split("/")[:-1]:
        inner = hdf5_checks.subgroup(group, part)
        if inner is None:
            return [f"/checksums/{name} is missing"]
        group = inner
    recorded = hdf5_checks.dataset(group, name.split("/")[-1])
    if recorded.shape != (len(found),) or recorded.dtype != np.dtype("<u4"):
        raise UserError(f"/checksums/{name} of {checksums.file.filename} is not {len(found)} CRC-32 numbers")
    wrong = np.flatnonzero(recorded[:] != np.array(found, np.uint32))
    ranges = [(i * ROWS_PER_CRC, min((i + 1) * ROWS_PER_CRC, num_rows) - 1) for i in wrong.tolist()]
    return [f"/{name}: rows {first:,} to {last:,} changed" for first, last in ranges]
