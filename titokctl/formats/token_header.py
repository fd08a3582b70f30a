"""Header and checksums of a token cache, for both of its forms on disk: a file and a folder of parts."""

import hashlib
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from titokctl.errors import UserError
from titokctl.formats.token_keys import Keys

ROWS_PER_CRC = 65_536
# What a file may declare; larger numbers would cost memory or minutes before anything else is known of it.
MAX_CLASSES, MAX_NAME_BYTES, MAX_VIEWS, MAX_VIEW_NAME = 1 << 20, 4096, 64, 200
PLAIN = "plain"  # the name of the view that /tokens itself is
_Text = Annotated[str, Field(strict=True)]
_Count = Annotated[int, Field(strict=True, ge=0)]
_Positive = Annotated[int, Field(strict=True, ge=1)]
_Json = dict[str, Any]
_Name = Annotated[str, Field(pattern=r"^[^/]+$")]


@dataclass(frozen=True)
class CacheHeader:
    """The record of what made a token cache.

    Args:
        tokenizer: the tokenizer's configuration, plain JSON values.
        encoder_sha256: hash of what decides the ids (64 hex digits).
        weights_sha256: hash of the whole tokenizer (64 hex digits).
        codebook_size: V; 0 for a Gaussian tokenizer.
        num_latent_tokens: K.
        image_size: edge of the square crop in pixels.
        preprocessing: how an image became that crop, plain JSON values.
        source: where the images came from, plain JSON values.
        views: name of each further view -> its own preprocessing.
        class_names: name of each label from 0 on; () without names.
        created_by: program and version.
        made_with: versions, device kind, precision and tile; {} when not recorded.
        num_rejected: images of the source without a row; None when not recorded.
        token_size: C of a Gaussian tokenizer, whose rows are latents; 0 for ids.
        terms: terms of use of the images, and so of the ids, in words; "" when not recorded.
    """

    tokenizer: _Json
    encoder_sha256: _Text
    weights_sha256: _Text
    codebook_size: _Count
    num_latent_tokens: _Positive
    image_size: _Positive
    preprocessing: _Json
    source: _Json
    views: dict[_Name, _Json] = field(default_factory=dict)
    class_names: tuple[_Text, ...] = ()
    created_by: _Text = ""
    made_with: _Json = field(default_factory=dict)
    num_rejected: _Count | None = None
    token_size: _Count = 0
    terms: _Text = ""

    __pydantic_config__ = ConfigDict(extra="forbid")

    @property
    def main(self) -> str:
        """Name of the dataset of the plain crops: "tokens" or "latents"."""
        return "latents" if self.token_size else "tokens"

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of one row: (K,) ids or (K, C) latents."""
        return (self.num_latent_tokens, self.token_size) if self.token_size else (self.num_latent_tokens,)

    @property
    def row_dtype(self) -> np.dtype:
        """The type of a row on disk; ids take two bytes where that is enough."""
        return np.dtype("<f2") if self.token_size else id_dtype(self.codebook_size)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row in all views together, the plain one included."""
        return (1 + len(self.views)) * int(np.prod(self.row_shape)) * self.row_dtype.itemsize


def id_dtype(codebook_size: int) -> np.dtype:
    """Return the type of ids: little-endian uint16 for V up to 65,536, else uint32."""
    return np.dtype("<u2" if codebook_size <= 1 << 16 else "<u4")


_HEADER = TypeAdapter(CacheHeader)


def checked_header(fields: Mapping[str, Any], where: Callable[[str], str]) -> CacheHeader:
    """Return the header with these fields, read from a file of unknown origin.

    Args:
        where: returns the words that name a field in messages.

    Raises UserError when a field is missing, unknown, or of another type.
    """
    header = checked(_HEADER, dict(fields), where)
    _check_bounds(header, where)
    if (header.codebook_size > 0) == (header.token_size > 0):
        name = "token_size" if header.codebook_size else "codebook_size"
        found = getattr(header, name)
        raise UserError(f"{where(name)} is {found}, expected {'0 for a cache of ids' if found else 'at least 1'}")
    return header


def _check_bounds(header: CacheHeader, where: Callable[[str], str]) -> None:
    if len(header.class_names) > MAX_CLASSES:
        raise UserError(f"{where('class_names')} are {len(header.class_names):,}, more than {MAX_CLASSES:,}")
    if any(len(name) > MAX_NAME_BYTES for name in header.class_names):
        raise UserError(f"{where('class_names')} hold a name of more than {MAX_NAME_BYTES:,} characters")
    if len(header.views) > MAX_VIEWS or any(len(name) > MAX_VIEW_NAME for name in header.views):
        raise UserError(f"{where('views')} are more than {MAX_VIEWS}, or have names above {MAX_VIEW_NAME} characters")
    if PLAIN in header.views:
        raise UserError(f"{where('views')} have a view named {PLAIN!r}, the name of the rows themselves")
    for name in header.views:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{where('views')} have a name that is not UTF-8") from error


def checked(adapter: TypeAdapter[Any], value: Any, where: Callable[[str], str]) -> Any:
    """Return `value` as the type of `adapter`. Raises UserError, which names the first field that doesn't fit."""
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"] if part != "[key]")
        raise UserError(f"{where(name)} {_in_words(first['type'], first['input'], first)}") from error


def _in_words(kind: str, found: Any, error: Mapping[str, Any]) -> str:
    if kind in ("missing", "missing_argument"):
        return "is missing"
    if kind == "unexpected_keyword_argument":
        return "is not a known field"
    if kind == "greater_than_equal":
        return f"is {found}, expected at least {error['ctx']['ge']}"
    expected = {
        "int_type": "one whole number", "string_type": "text", "dict_type": "a JSON object", "json_invalid": "JSON",
        "json_type": "text", "tuple_type": "a list", "list_type": "a list", "string_pattern_mismatch": "a name",
    }  # fmt: skip
    return f"is not {expected[kind]}" if kind in expected else f"is not valid: {error['msg']}"


def check_labels(path: Path, labels: np.ndarray, num_classes: int) -> None:
    """Raise UserError when labels (n,) are below -1, or have no name in a cache with class names."""
    if not len(labels):
        return
    least, most = int(labels.min()), int(labels.max())
    if least < -1 or most >= (num_classes or MAX_CLASSES):
        limit = f"-1 to {(num_classes or MAX_CLASSES) - 1}"
        raise UserError(f"/labels of {path} reach from {least} to {most}, expected {limit}")


@dataclass(frozen=True)
class RowBlock:
    """Consecutive rows of a cache: rows (n, ...) of the plain crops, labels (n,) int32, keys, rows of each view."""

    rows: np.ndarray
    labels: np.ndarray
    keys: Keys
    views: dict[str, np.ndarray]


class StoredCache(ABC):
    """A token cache on disk, opened and checked, in one of its two forms.

    Attributes:
        form: the form in words.
        header: the header.
        rows: the rows of the plain crops: (N, K) ids or (N, K, C) latents, memory-mapped or read when indexed.
        views: the rows of each further view.
        sha256: checksum of the contents, the same in both forms.
    """

    form: str
    path: Path
    header: CacheHeader
    rows: np.ndarray
    views: dict[str, np.ndarray]
    sha256: str

    @abstractmethod
    def read_labels(self) -> np.ndarray:
        """Return the labels (N,) int32."""

    @abstractmethod
    def read_keys(self) -> Keys:
        """Return the keys of all rows."""

    @abstractmethod
    def key_room(self) -> int:
        """Return a number of bytes that all keys together don't exceed; the keys themselves are not read."""

    @abstractmethod
    def blocks(self) -> Iterator[RowBlock]:
        """Yield all rows in order, some 65,536 at a time, in memory that does not grow with the cache."""

    @abstractmethod
    def num_bytes(self) -> int:
        """Return the size on disk in bytes."""

    @abstractmethod
    def damage(self, advance: Callable[[int], None]) -> list[str]:
        """Read everything and compare it with the checksums.

        Args:
            advance: called with the number of rows read since, counted in each view.

        Returns one sentence for each thing that changed since it was written; [] when nothing did.
        """


class ContentsChecksums:
    """The checksums of a cache (`token_file` specifies them), over blocks of rows of its datasets."""

    def __init__(self) -> None:
        self._of: dict[str, _Dataset] = {}

    def update(self, path: str, block: np.ndarray) -> None:
        """Add the next rows of the dataset /path (little-endian)."""
        if path not in self._of:
            self._of[path] = _Dataset(block)
        self._of[path].update(block)

    @property
    def paths(self) -> list[str]:
        """The paths of all datasets so far, sorted."""
        return sorted(self._of)

    def crcs(self, path: str) -> list[int]:
        """Return one CRC-32 for every 65,536 rows of a dataset; the last one covers the remaining rows."""
        return self._of[path].crcs

    def sha256(self) -> str:
        """Return the hex digest of all contents so far."""
        total = hashlib.sha256()
        for path, one in sorted(self._of.items()):
            shape = ",".join(map(str, (one.rows, *one.row_shape)))
            total.update(f"/{path} {one.dtype.str} {shape} {one.sha.hexdigest()}\n".encode())
        return total.hexdigest()


class _Dataset:
    def __init__(self, block: np.ndarray) -> None:
        self.dtype, self.row_shape = block.dtype, block.shape[1:]
        self.sha = hashlib.sha256()
        self.crcs: list[int] = []
        self.rows = 0

    def update(self, block: np.ndarray) -> None:
        data, row = bytes_of(block), block.itemsize * int(np.prod(self.row_shape))
        self.sha.update(data)
        first = 0
        while first < len(block):
            begun = self.rows % ROWS_PER_CRC
            n = min(ROWS_PER_CRC - begun, len(block) - first)
            crc = zlib.crc32(data[first * row : (first + n) * row], self.crcs.pop() if begun else 0)
            self.crcs.append(crc)
            self.rows += n
            first += n


def bytes_of(block: np.ndarray) -> memoryview:
    """Return the bytes of an array, without a copy if it is contiguous."""
    return memoryview(np.ascontiguousarray(block).reshape(-1).view(np.uint8))  # type: ignore[arg-type]
