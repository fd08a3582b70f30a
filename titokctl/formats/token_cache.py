"""The token cache: one HDF5 file with the ids of every image, its label, its key, and what made them.

Specification (the full text with an example is docs/formats.md). N images, K latent tokens, V codebook size.

    /tokens              (N, K) uint16, uint32 when V > 65,536; contiguous, little-endian; row i is image i's plain crop
    /views/<name>        same shape and type: other crops of the same images; attribute `preprocessing` (JSON)
    /labels              (N,) int32, contiguous; -1 for none
    /keys                (N,) fixed-length UTF-8 bytes, padded with zero bytes; chunked, gzip + fletcher32
    /class_names         (classes,) the same kind of text; absent when there are no names
    /checksums           attributes `sha256`, `rows_per_crc`; below it, for /tokens and each /views/<name>, a dataset
                         of the same path: (ceil(N / 65,536),) uint32, the CRC-32 of every 65,536 rows

Root attributes: format "titokctl/token-cache", format_version 1, tokenizer (config, JSON), encoder_sha256,
weights_sha256, codebook_size, num_latent_tokens, image_size, preprocessing (JSON), source (JSON), created_by, and
complete = 1, which is written after everything else; made_with (JSON) and num_rejected may be there. `sha256` covers
the contents: the SHA-256 of one line a dataset, sorted by path, "<path> <numpy type> <n,n> <sha256 of its bytes>\\n".
A writer (`token_cache_writer`) works under a temporary name and renames the finished file; the target itself is never
opened for writing.
"""

import json
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from titokctl.errors import UserError
from titokctl.formats import hdf5_checks

FORMAT = "titokctl/token-cache"
FORMAT_VERSION = 1
PLAIN = "plain"  # the name of the view that /tokens itself is
_ROWS_AT_ONCE = 1 << 18
_WHAT = "a token cache"


@dataclass(frozen=True)
class CacheHeader:
    """What a token cache says about itself.

    Args:
        tokenizer: the tokenizer's configuration, plain JSON values.
        encoder_sha256: what decides the ids (64 hex digits).
        weights_sha256: the whole tokenizer (64 hex digits).
        codebook_size: V.
        num_latent_tokens: K.
        image_size: edge of the square crop in pixels.
        preprocessing: how an image became that crop, plain JSON values.
        source: where the images came from, plain JSON values.
        views: name of each further view -> its own preprocessing.
        class_names: name of each label from 0 on; () when there are none.
        created_by: program and version.
        made_with: versions, device kind, precision and tile; {} when not recorded.
        num_rejected: images of the source that have no row; None when not recorded.
    """

    tokenizer: dict[str, Any]
    encoder_sha256: str
    weights_sha256: str
    codebook_size: int
    num_latent_tokens: int
    image_size: int
    preprocessing: dict[str, Any]
    source: dict[str, Any]
    views: dict[str, dict[str, Any]] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    created_by: str = ""
    made_with: dict[str, Any] = field(default_factory=dict)
    num_rejected: int | None = None

    @property
    def id_dtype(self) -> np.dtype:
        """The type of an id on disk: two bytes as long as they suffice."""
        return id_dtype(self.codebook_size)


def id_dtype(codebook_size: int) -> np.dtype:
    """Little-endian uint16 for V up to 65,536, else uint32."""
    return np.dtype("<u2" if codebook_size <= 1 << 16 else "<u4")


class TokenCache:
    """A finished token cache, checked and memory-mapped; safe to use on a file of unknown origin.

    `ids` (N, K) and every view are maps of the file, shared by all processes and not limited by memory; writing to
    them never reaches the file. Nothing of the file stays open but these maps.
    """

    def __init__(
        self,
        path: Path,
        header: CacheHeader,
        ids: np.ndarray,
        views: dict[str, np.ndarray],
        labels: np.ndarray,
        sha256: str,
    ) -> None:
        self.path, self.header, self.sha256 = path, header, sha256
        self.ids, self.labels = ids, labels
        self._views = views

    @classmethod
    def open(cls, path: Path | str, check_ids: bool = True) -> "TokenCache":
        """Open `path` and check its structure, types, sizes and attributes.

        Args:
            path: a token cache.
            check_ids: also read all ids once and refuse any that is not below V.

        Raises UserError with one sentence for anything that is not a whole, well-formed cache of a known version.
        """
        path = Path(path)
        with hdf5_checks.opened(path, _WHAT) as file:
            header = _read_header(file)
            ids = _read_ids(path, file, "tokens", header)
            views = {name: _read_ids(path, file["views"], name, header) for name in header.views}
            wrong = [name for name, view in views.items() if len(view) != len(ids)]
            if wrong:
                raise UserError(f"/views/{wrong[0]} of {path} has {len(views[wrong[0]]):,} rows, /tokens {len(ids):,}")
            labels = _read_labels(path, file, len(ids), len(header.class_names))
            _text_dataset(file, "keys", len(ids))
            checksums = hdf5_checks.subgroup(file, "checksums")
            if checksums is None:
                raise UserError(f"/checksums of {path} is missing")
            cache = cls(path, header, ids, views, labels, str(hdf5_checks.attribute(checksums, "sha256", str)))
        if check_ids:
            cache.check_ids()
        return cache

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"TokenCache({str(self.path)!r}, rows={len(self)}, views={list(self.views)})"

    @property
    def views(self) -> tuple[str, ...]:
        """Names of the views, "plain" (that is /tokens) first."""
        return (PLAIN, *self._views)

    def view(self, name: str) -> np.ndarray:
        """The ids (N, K) of one view; "plain" is /tokens. Raises UserError for a view that is not there."""
        if name == PLAIN:
            return self.ids
        if name not in self._views:
            raise UserError(f"{self.path} has no view {name!r}; it has {', '.join(self.views)}")
        return self._views[name]

    @cached_property
    def keys(self) -> np.ndarray:
        """Keys (N,) as UTF-8 bytes (numpy type S), read at first use."""
        with hdf5_checks.opened(self.path, _WHAT) as file:
            return np.asarray(_text_dataset(file, "keys", len(self))[...])

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

    def check_ids(self) -> None:
        """Read every id once. Raises UserError when one is not below the codebook size."""
        for name in self.views:
            ids = self.view(name)
            if self.codebook_size > np.iinfo(ids.dtype).max:
                continue
            for first in range(0, len(ids), _ROWS_AT_ONCE):
                block = ids[first : first + _ROWS_AT_ONCE]
                if block.max() >= self.codebook_size:
                    row = first + int((block >= self.codebook_size).any(axis=1).argmax())
                    raise UserError(
                        f"row {row} of view {name!r} in {self.path} holds the id {int(ids[row].max())}, but the "
                        f"codebook has only {self.codebook_size} codes"
                    )


def _read_header(file: h5py.File) -> CacheHeader:
    path = file.filename
    if file.attrs.get("format") is None:
        raise UserError(f"{path} is an HDF5 file, but not {_WHAT}")
    found = hdf5_checks.attribute(file, "format", str)
    if found != FORMAT:
        raise UserError(f"{path} holds {found!r}, not {_WHAT}")
    version = int(hdf5_checks.attribute(file, "format_version", int))
    if version > FORMAT_VERSION:
        raise UserError(f"{path} was written by a newer titokctl (token cache {version})", "upgrade titokctl")
    if "complete" not in file.attrs or not hdf5_checks.attribute(file, "complete", int):
        raise UserError(f"{path} was never finished", "make it again with `titokctl tokenize`")
    hdf5_checks.names_of(file)
    views = hdf5_checks.subgroup(file, "views")
    names = [] if views is None else hdf5_checks.names_of(views)
    return CacheHeader(
        tokenizer=_json_attribute(file, "tokenizer"),
        encoder_sha256=str(hdf5_checks.attribute(file, "encoder_sha256", str)),
        weights_sha256=str(hdf5_checks.attribute(file, "weights_sha256", str)),
        codebook_size=_positive(file, "codebook_size"),
        num_latent_tokens=_positive(file, "num_latent_tokens"),
        image_size=_positive(file, "image_size"),
        preprocessing=_json_attribute(file, "preprocessing"),
        source=_json_attribute(file, "source"),
        views={name: _json_attribute(hdf5_checks.dataset(views, name), "preprocessing") for name in names},
        class_names=_class_names(file),
        created_by=str(hdf5_checks.attribute(file, "created_by", str)),
        made_with=_json_attribute(file, "made_with") if "made_with" in file.attrs else {},
        num_rejected=int(hdf5_checks.attribute(file, "num_rejected", int)) if "num_rejected" in file.attrs else None,
    )


def _positive(file: h5py.File, name: str) -> int:
    value = int(hdf5_checks.attribute(file, name, int))
    if value < 1:
        raise UserError(f"attribute {name} of {file.filename} is {value}, expected at least 1")
    return value


def _json_attribute(owner: h5py.Group | h5py.Dataset, name: str) -> dict[str, Any]:
    text = str(hdf5_checks.attribute(owner, name, str))
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"attribute {name} of {owner.file.filename} is not JSON") from error
    if not isinstance(value, dict):
        raise UserError(f"attribute {name} of {owner.file.filename} is not a JSON object")
    return value


def _read_ids(path: Path, group: h5py.Group, name: str, header: CacheHeader) -> np.ndarray:
    found = hdf5_checks.dataset(group, name)
    if found.dtype != header.id_dtype:
        raise UserError(f"{found.name} of {path} is of type {found.dtype.str}, expected {header.id_dtype.str}")
    if len(found.shape) != 2 or found.shape[0] < 1 or found.shape[1] != header.num_latent_tokens:
        wanted = f"(rows, {header.num_latent_tokens}) with at least one row"
        raise UserError(f"{found.name} of {path} has the shape {found.shape}, expected {wanted}")
    return hdf5_checks.rows(path, found)


def _read_labels(path: Path, file: h5py.File, num_rows: int, num_classes: int) -> np.ndarray:
    found = hdf5_checks.dataset(file, "labels")
    if found.dtype != np.dtype("<i4") or found.shape != (num_rows,):
        got = f"{found.dtype.str} {found.shape}"
        raise UserError(f"/labels of {path} is {got}, expected <i4 ({num_rows},)")
    labels = hdf5_checks.rows(path, found)
    least, most = int(labels.min()), int(labels.max())
    if least < -1 or (num_classes and most >= num_classes):
        limit = f"-1 to {num_classes - 1}" if num_classes else "-1 or more"
        raise UserError(f"/labels of {path} reach from {least} to {most}, expected {limit}")
    return labels


def _text_dataset(group: h5py.Group, name: str, num_rows: int | None) -> h5py.Dataset:
    found = hdf5_checks.dataset(group, name)
    if found.dtype.kind != "S" or len(found.shape) != 1 or num_rows not in (None, found.shape[0]):
        rows = "n" if num_rows is None else num_rows
        got = f"{found.dtype.str} {found.shape}"
        raise UserError(f"/{name} of {group.file.filename} is {got}, expected fixed-length text ({rows},)")
    return found


def _class_names(file: h5py.File) -> tuple[str, ...]:
    if "class_names" not in file:
        return ()
    try:
        return tuple(name.decode() for name in _text_dataset(file, "class_names", None)[...])
    except UnicodeDecodeError as error:
        raise UserError(f"/class_names of {file.filename} is not UTF-8") from error
