"""Hugging Face data sets in parquet files: a column `image` with the file's bytes, a column `label`.

Files are read by row group; the last few groups are kept in memory, so that neighbouring rows cost one read. Class
names come from the schema's metadata (a ClassLabel feature). Needs pyarrow, from the `parquet` extra.
"""

import hashlib
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from titokctl.data.sources.source import Sample, SeekableSource, description_of, units_of
from titokctl.errors import UserError

T = TypeVar("T")

KIND = "parquet"
_LABELS = ("label", "labels", "cls", "class")
_IMAGES = ("image", "img", "jpg", "png", "webp")
_KEPT_BYTES = 256 << 20
_MAX_GROUP_BYTES = 8 << 30
_HINT = "pip install 'titokctl[parquet]' brings pyarrow"


@dataclass
class ParquetSource(SeekableSource):
    """Rows of several files, in order. `groups` has a row per row group: file, row group, first position."""

    paths: list[Path] = field(default_factory=list)
    column: str = "image"
    groups: np.ndarray = field(default_factory=lambda: np.empty((0, 3), np.int64))
    row_labels: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    row_keys: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, list[bytes]] = OrderedDict()

    def read_many(self, positions: Sequence[int] | np.ndarray) -> list[Sample]:
        wanted = np.asarray(positions, np.int64)
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < len(self):
            raise IndexError(f"samples {wanted.min()} to {wanted.max()} of {len(self)}")
        at = np.searchsorted(self.groups[:, 2], wanted, side="right") - 1
        data = {int(g): self._images(int(g)) for g in dict.fromkeys(at.tolist())}
        return [
            Sample(self.row_keys[p], int(self.row_labels[p]), data[g][p - int(self.groups[g, 2])])
            for g, p in zip(at.tolist(), wanted.tolist(), strict=True)
        ]

    def labels(self) -> np.ndarray:
        return self.row_labels.copy()

    def keys(self) -> list[str]:
        return list(self.row_keys)

    def sizes(self) -> np.ndarray:
        """Return the size in bytes of each image file, (len,) int64; reads all images."""
        return np.array([len(b) for g in range(len(self.groups)) for b in self._images(g)], np.int64)

    def _images(self, group: int) -> list[bytes]:
        """Return the image files of one row group."""
        with self._lock:
            if group in self._kept:
                self._kept.move_to_end(group)
                return self._kept[group]
            images = self._read(group)
            self._kept[group] = images
            # The newest group stays whatever its size, since its other rows are usually read next.
            while len(self._kept) > 1 and sum(len(b) for kept in self._kept.values() for b in kept) > _KEPT_BYTES:
                self._kept.popitem(last=False)
            return images

    def _read(self, group: int) -> list[bytes]:
        path, number = self.paths[int(self.groups[group, 0])], int(self.groups[group, 1])
        table = _reading(path, lambda file: file.read_row_group(number, columns=[f"{self.column}.bytes"]))
        return [b"" if cell is None else cell["bytes"] or b"" for cell in table.column(self.column).to_pylist()]


def parquet_in(path: Path) -> list[Path]:
    """Return the parquet files of a folder or of its `data/`, sorted; of several splits, those of `train`."""
    files = sorted(p for p in path.glob("*.parquet") if not p.name.startswith("."))
    files = files or sorted(p for p in path.glob("data/*.parquet") if not p.name.startswith("."))
    return [p for p in files if p.name.startswith("train")] or files


@dataclass(frozen=True)
class _Head:
    """The facts of one file without its images: rows of each row group; label and name of each row ("" for none)."""

    column: str
    class_names: list[str]
    rows: list[int]
    labels: np.ndarray
    names: list[str]


def open_parquet(paths: Sequence[Path]) -> ParquetSource:
    """Open parquet files, in the order given.

    Raises:
        UserError: pyarrow is missing; a file can't be read, has no images, or has other classes than the first.
    """
    heads = [_reading(path, _head) for path in paths]
    for path, head in zip(paths, heads, strict=True):
        if (head.column, head.class_names) != (heads[0].column, heads[0].class_names):
            raise UserError(f"{path} has other classes or columns than {paths[0]}", "use files of one data set")
    if not sum(sum(head.rows) for head in heads):
        raise UserError(f"no images in {len(paths)} parquet files", "name files with rows, or a folder with such files")
    labels = np.concatenate([head.labels for head in heads])
    class_names = heads[0].class_names
    if class_names and labels.max() >= len(class_names):
        raise UserError(f"the files contain the label {labels.max()}, but there are {len(class_names):,} class names")
    units = units_of([(path.name, sum(head.rows)) for path, head in zip(paths, heads, strict=True)])
    resolved = [str(path.resolve()) for path in paths]
    return ParquetSource(
        class_names,
        description_of(KIND, resolved, len(labels), _fingerprint(paths, heads)),
        units,
        paths=list(paths),
        column=heads[0].column,
        groups=_groups(heads),
        row_labels=labels,
        row_keys=_keys(paths, heads),
    )


def _head(file: Any) -> _Head:
    schema = file.schema_arrow
    structs = [name for name in schema.names if _holds_images(schema.field(name).type)]
    column = next((name for name in _IMAGES if name in structs), structs[0] if structs else None)
    if column is None:
        raise UserError("it has no column of images", "expected a column `image` with the file's bytes in `bytes`")
    label = next((name for name in _LABELS if name in schema.names), None)
    count, path = file.metadata.num_rows, f"{column}.path"
    has_path = "path" in {schema.field(column).type.field(i).name for i in range(schema.field(column).type.num_fields)}
    table = file.read(columns=[*([path] if has_path else []), *([label] if label else [])])
    values = table.column(label).to_pylist() if label else [-1] * count
    names = (
        [str((cell or {}).get("path") or "") for cell in table.column(column).to_pylist()] if has_path else [""] * count
    )
    groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    if any(group.total_byte_size > _MAX_GROUP_BYTES for group in groups):
        raise UserError(
            f"it has a row group of more than {_MAX_GROUP_BYTES >> 30} GiB", "write it with smaller row groups"
        )
    return _Head(column, _class_names(schema.metadata, label), [g.num_rows for g in groups], _labels(values), names)


def _holds_images(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_struct(kind)) and kind.get_field_index("bytes") >= 0


def _labels(values: list[Any]) -> np.ndarray:
    """Return (n,) int32; a missing label is -1, as in test splits on the Hub."""
    numbers = [-1 if value is None else value for value in values]
    wrong = next((n for n in numbers if isinstance(n, bool) or not isinstance(n, int) or not -1 <= n < 1 << 31), None)
    if wrong is not None:
        raise UserError(f"{wrong!r} in its label column is not a class index")
    return np.array(numbers, np.int32)


def _class_names(metadata: dict[bytes, bytes] | None, label: str | None) -> list[str]:
    """Return the names of a ClassLabel feature from the metadata that `datasets` writes; [] without one."""
    try:
        names = json.loads((metadata or {})[b"huggingface"])["info"]["features"][label]["names"]
        return [str(name) for name in names]
    except (KeyError, TypeError, ValueError):
        return []


def _groups(heads: Sequence[_Head]) -> np.ndarray:
    """Return (n, 3) int64: file, row group within it, and first position; empty groups are left out."""
    found, first = [], 0
    for number, head in enumerate(heads):
        for group, rows in enumerate(head.rows):
            if rows:
                found.append((number, group, first))
            first += rows
    return np.array(found, np.int64)


def _keys(paths: Sequence[Path], heads: Sequence[_Head]) -> list[str]:
    """Return the images' names without extension if all differ, otherwise file and row."""
    names = [name.rpartition(".")[0] or name for head in heads for name in head.names]
    if all(names) and len(set(names)) == len(names):
        return names
    return [f"{path.stem}/{i:08d}" for path, head in zip(paths, heads, strict=True) for i in range(len(head.names))]


def _fingerprint(paths: Sequence[Path], heads: Sequence[_Head]) -> str:
    """Return the SHA-256 of the files' names and sizes, their rows and labels."""
    total = hashlib.sha256()
    for path, head in zip(paths, heads, strict=True):
        total.update(os.fsencode(path.name) + f"\0{path.stat().st_size} {head.rows}\n".encode())
        total.update(head.labels.tobytes())
    return total.hexdigest()


def _reading(path: Path, use: Callable[[Any], T]) -> T:
    """Return use(open ParquetFile). Raises UserError, which names the file, when it can't be read."""
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UserError("parquet files need the package pyarrow, which is not installed", _HINT) from error
    import pyarrow as pa

    try:
        with pq.ParquetFile(path) as file:
            return use(file)
    except UserError as error:
        raise UserError(f"{path}: {error.message}", error.hint) from error
    except (pa.ArrowException, OSError, MemoryError) as error:
        text = " ".join(str(error).split())
        raise UserError(f"{path} can't be read as parquet: {text}", "copy or download it again") from error
