"""Data sets in parquet or arrow files: a column with the bytes of image files, and perhaps one with labels.

The column of images is a struct with a field `bytes`, as the Hub writes it, or plain binary. Labels are class indices,
whose names come from the schema's metadata (a ClassLabel feature), or names, numbered in text order. Files are read by
row group; the last few groups are kept in memory, so that neighbouring rows cost one read. `table_files` opens them,
here or on a server. Needs pyarrow, from the `parquet` extra.
"""

import hashlib
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from titokctl.data.sources.choices import NO_CHOICES, Choices
from titokctl.data.sources.label_lists import numbered
from titokctl.data.sources.shard_checks import label_remarks
from titokctl.data.sources.source import Counts, Sample, SeekableSource, Unit, description_of, units_of
from titokctl.data.sources.table_files import LocalTable, RemoteTable, TableFile, reading
from titokctl.data.workers import in_order
from titokctl.errors import UserError
from titokctl.formats.local_file import Identity
from titokctl.readable import counted

KIND = "parquet"
_LABELS = ("label", "labels", "cls", "class", "class_id", "target")
_LABEL_LIKE = ("label", "class", "target")
_IMAGES = ("image", "img", "jpg", "png", "webp")
_KEPT_BYTES = 256 << 20
_MAX_GROUP_BYTES = 8 << 30
_AT_ONCE = 8  # files on a server whose facts are read


@dataclass
class ParquetSource(SeekableSource):
    """Rows of several files, in order. `groups` has a row per row group: file, row group, first position."""

    tables: list[TableFile] = field(default_factory=list)
    column: str = "image"
    groups: np.ndarray = field(default_factory=lambda: np.empty((0, 3), np.int64))
    row_labels: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    row_keys: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, list[bytes]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process needs: not the row groups that this one keeps."""
        return {name: value for name, value in vars(self).items() if name not in ("_lock", "_kept")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.__post_init__()

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
        table, number = self.tables[int(self.groups[group, 0])], int(self.groups[group, 1])
        table.check()

        def read(file: Any) -> list[bytes]:
            column = file.read_row_group(number, [self.column], use_threads=False).column(self.column)
            return [_bytes_of(cell) for cell in column.to_pylist()]

        images = reading(table, read)
        table.check()
        ends = [*self.groups[1:, 2].tolist(), len(self)]
        # A group may be followed by one of another file, or by empty ones: they have no rows in between.
        if len(images) != ends[group] - int(self.groups[group, 2]):
            raise UserError(f"{table} is damaged: row group {number} has another number of rows than the file says")
        return images


def _bytes_of(cell: Any) -> bytes:
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    return data if isinstance(data, bytes) else b""


@dataclass(frozen=True)
class _Head:
    """The facts of one file without its images: rows of each row group; label and name of each row ("" for none)."""

    column: str
    label_column: str | None
    class_names: list[str]
    rows: list[int]
    labels: list[Any]
    names: list[str]


def open_parquet(files: Sequence[Path | str], choices: Choices = NO_CHOICES) -> ParquetSource:
    """Open parquet files, in the order given.

    Args:
        files: paths, or addresses as text; not both.

    Raises:
        UserError: pyarrow is missing; a file can't be read, has no images, or has other classes than the first; it is
            not clear which column holds images or labels.
    """
    tables, heads = _opened(files, choices)
    for table, head in zip(tables, heads, strict=True):
        if (head.column, head.class_names) != (heads[0].column, heads[0].class_names):
            raise UserError(f"{table} has other classes or columns than {tables[0]}", "use files of one data set")
    if not sum(sum(head.rows) for head in heads):
        raise UserError(
            f"no images in {len(tables)} parquet files", "name files with rows, or a folder with such files"
        )
    column = heads[0].label_column
    labels, names = numbered([label for head in heads for label in head.labels], f"the column {column}")
    class_names = heads[0].class_names or names
    if class_names and labels.max() >= len(class_names):
        raise UserError(
            f"the files contain the label {labels.max()}, but have {counted(len(class_names), 'class names')}"
        )
    made = choices.record()
    where = f"labels from the column {column}, " if column else "no labels: no column holds any, "
    return ParquetSource(
        class_names,
        _description(tables, heads, labels) | ({"choices": made} if made else {}),
        _units(tables, heads),
        remarks=[f"{where}images from the column {heads[0].column}", *label_remarks([labels], names if column else [])],
        tables=tables,
        column=heads[0].column,
        groups=_groups(heads),
        row_labels=labels,
        row_keys=_keys(tables, heads),
    )


def _opened(files: Sequence[Path | str], choices: Choices) -> tuple[list[TableFile], list[_Head]]:
    """Return the files and their facts; of files on a server, several at once."""

    def opened(file: Path | str) -> tuple[TableFile, _Head]:
        table: TableFile = LocalTable(file) if isinstance(file, Path) else RemoteTable(file)
        return table, reading(table, lambda found: _head(found, choices))

    is_remote = isinstance(files[0], str)
    found = [pair for _, pair in in_order(opened, files, min(len(files), _AT_ONCE) if is_remote else 1)]
    return [table for table, _ in found], [head for _, head in found]


def _description(tables: Sequence[TableFile], heads: Sequence[_Head], labels: np.ndarray) -> dict[str, Any]:
    here = [table for table in tables if isinstance(table, LocalTable)]
    identity = Identity.of([t.path for t in here], [t.state for t in here]) if here else Identity("", "", False)
    addresses = [table.address for table in tables]
    found = description_of(KIND, addresses, len(labels), _listing(tables, heads, labels), identity, Counts())
    if here:
        return found
    versions = "".join(f"{table.address}\0{table.version}\n" for table in tables)
    return found | {"versions": hashlib.sha256(versions.encode()).hexdigest()}


def _units(tables: Sequence[TableFile], heads: Sequence[_Head]) -> list[Unit]:
    """Return the units; those of a file on a server have its version, so that only what changed is read again."""
    units: list[Unit] = []
    for table, head in zip(tables, heads, strict=True):
        first, number = sum(unit.count for unit in units), len(units)
        for unit in units_of([(table.name, sum(head.rows))]):
            placed = replace(unit, index=number + unit.index, first=first + unit.first)
            units.append(replace(placed, state=table.version))
    return units


def _head(file: Any, choices: Choices) -> _Head:
    schema = file.schema_arrow
    column = _image_column(schema, choices.image_key)
    label = _label_column(schema, choices.label_key) if choices.use_labels else None
    kind, count = schema.field(column).type, file.metadata.num_rows
    has_path = _holds_images(kind) and kind.get_field_index("path") >= 0
    table = file.read(
        use_threads=False, columns=[*([f"{column}.path"] if has_path else []), *([label] if label else [])]
    )
    values = table.column(label).to_pylist() if label else [None] * count
    names = (
        [str((cell or {}).get("path") or "") for cell in table.column(column).to_pylist()] if has_path else [""] * count
    )
    groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    if any(group.total_byte_size > _MAX_GROUP_BYTES for group in groups):
        raise UserError(
            f"it has a row group of more than {_MAX_GROUP_BYTES >> 30} GiB", "write it with smaller row groups"
        )
    class_names = _class_names(schema.metadata, label)
    return _Head(column, label, class_names, [g.num_rows for g in groups], _checked(values), names)


def _image_column(schema: Any, wanted: str | None) -> str:
    """Return the column that holds the images. Raises UserError if there is none, or not only one."""
    fitting = [name for name in schema.names if _holds_images(schema.field(name).type)]
    fitting = fitting or [name for name in schema.names if _is_binary(schema.field(name).type)]
    if wanted is not None:
        if wanted not in schema.names:
            raise UserError(f"it has no column {wanted}", f"its columns are {', '.join(schema.names)}")
        kind = schema.field(wanted).type
        if not (_holds_images(kind) or _is_binary(kind)):
            raise UserError(f"its column {wanted} holds {kind}, not the bytes of images", "name another column")
        return wanted
    known = next((name for name in _IMAGES if name in fitting), None)
    if known is not None or len(fitting) == 1:
        return known or str(fitting[0])
    if fitting:
        raise UserError(f"its columns {', '.join(fitting)} may all be images", "choose one with --image-column")
    raise UserError("it has no column of images", "expected a column with the bytes of image files, such as `image`")


def _label_column(schema: Any, wanted: str | None) -> str | None:
    """Return the column of labels, None without one. Raises UserError if several may be it."""
    if wanted is not None:
        if wanted not in schema.names:
            raise UserError(f"it has no column {wanted}", f"its columns are {', '.join(schema.names)}")
        return wanted
    known = next((name for name in _LABELS if name in schema.names), None)
    if known is not None:
        return known
    like = [name for name in schema.names if any(word in name.lower() for word in _LABEL_LIKE)]
    like = [name for name in like if _may_be_labels(schema.field(name).type)]
    if len(like) > 1:
        hint = f"choose one with --label-column {like[0]}, or read the images without labels: --no-labels"
        raise UserError(f"its columns {', '.join(like)} may all be labels", hint)
    return str(like[0]) if like else None


def _holds_images(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_struct(kind)) and kind.get_field_index("bytes") >= 0


def _is_binary(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _may_be_labels(kind: Any) -> bool:
    import pyarrow as pa

    of = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_integer(of) or pa.types.is_string(of) or pa.types.is_large_string(of))


def _checked(values: list[Any]) -> list[Any]:
    """Return the labels of a column; a missing one is None, as -1 is in test splits on the Hub."""
    found = [None if value == -1 or value == "" else value for value in values]
    for value in found:
        is_index = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31
        if value is not None and not is_index and not isinstance(value, str):
            raise UserError(f"{value!r} in its label column is not a class index", "choose another --label-column")
    return found


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


def _keys(tables: Sequence[TableFile], heads: Sequence[_Head]) -> list[str]:
    """Return the images' names without extension if all differ, otherwise file and row."""
    names = [name.rpartition(".")[0] or name for head in heads for name in head.names]
    if all(names) and len(set(names)) == len(names):
        return names
    pairs = zip(tables, heads, strict=True)
    return [f"{PurePosixPath(t.name).stem}/{i:08d}" for t, head in pairs for i in range(len(head.names))]


def _listing(tables: Sequence[TableFile], heads: Sequence[_Head], labels: np.ndarray) -> str:
    """Return the SHA-256 of the files' names and sizes, their rows and labels."""
    total = hashlib.sha256()
    first = 0
    for table, head in zip(tables, heads, strict=True):
        total.update(os.fsencode(table.name) + f"\0{table.size} {head.rows}\n".encode())
        total.update(labels[first : first + len(head.labels)].tobytes())
        first += len(head.labels)
    return total.hexdigest()
