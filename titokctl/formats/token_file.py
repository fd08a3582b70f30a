"""A token cache as one HDF5 file: the specification, and reading it.

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
"""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from pydantic import Json, TypeAdapter

from titokctl.errors import UserError
from titokctl.formats import hdf5_checks
from titokctl.formats.atomic import check_version
from titokctl.formats.token_header import (
    ROWS_PER_CRC,
    CacheHeader,
    ContentsChecksums,
    StoredCache,
    bytes_of,
    check_labels,
    checked,
    checked_header,
)

FORMAT = "titokctl/token-cache"
FORMAT_VERSION = 1
_JSON: TypeAdapter[dict[str, Any]] = TypeAdapter(Json[dict[str, Any]])
_TEXT = ("class_names", "keys")
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
            text_dataset(file, "keys", len(self.rows))
            checksums = hdf5_checks.subgroup(file, "checksums")
            if checksums is None:
                raise UserError(f"/checksums of {path} is missing")
            self.sha256 = str(hdf5_checks.attribute(checksums, "sha256", str))

    def read_labels(self) -> np.ndarray:
        return self._labels

    def read_keys(self) -> np.ndarray:
        with hdf5_checks.opened(self.path) as file:
            return np.asarray(text_dataset(file, "keys", len(self.rows))[...])

    def num_bytes(self) -> int:
        return self.path.stat().st_size

    def damage(self, advance: Callable[[int], None]) -> list[str]:
        return _damage(self.path, advance)

    def check_rows(self) -> None:
        _check_rows(self.path)

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
    views = hdf5_checks.subgroup(file, "views")
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
        checksums, ids = file["checksums"], _datasets_of_rows(file)
        problems: list[str] = []
        found = ContentsChecksums()
        for name in (*ids, "labels", *(name for name in _TEXT if name in file)):
            for block in _blocks(file[name]):
                found.update(name, block)
                advance(len(block) if name in ids else 0)
            if name in ids:
                problems += _wrong_blocks(checksums, name, found.crcs(name), len(file[name]))
        if found.sha256() != hdf5_checks.attribute(checksums, "sha256", str) and not problems:
            problems.append("labels, keys, class names or the checksum itself changed since the file was written")
        return problems


def _check_rows(path: Path) -> None:
    """Compare the rows of all views with their CRC-32s, as `StoredCache.check_rows`."""
    with hdf5_checks.opened(path) as file:
        for name in _datasets_of_rows(file):
            found = [zlib.crc32(bytes_of(block)) for block in _blocks(file[name])]
            wrong = _wrong_blocks(file["checksums"], name, found, len(file[name]))
            if wrong:
                raise UserError(
                    f"{path} is damaged: {wrong[0]} since the file was written",
                    "fetch or make it again; `titokctl verify` lists all changes",
                )


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
