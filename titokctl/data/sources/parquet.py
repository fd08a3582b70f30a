"""Data sets in parquet or arrow files: a column with the bytes of image files, and perhaps one with labels.

The column of images is a struct with a field `bytes`, as the Hub writes it, or plain binary. Labels are class indices,
whose names come from the schema's metadata (a ClassLabel feature), or names, numbered in text order. Files are read by
row group; the last few groups are kept in memory, so that neighbouring rows cost one read. Needs pyarrow, from the
`parquet` extra.
"""

import hashlib
import json
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from titokctl.data.sources.arrow_files import SUFFIX as ARROW
from titokctl.data.sources.arrow_files import ArrowFile
from titokctl.data.sources.choices import NO_CHOICES, NO_SPLIT, Choices
from titokctl.data.sources.class_folders import SPLITS
from titokctl.data.sources.folder_listing import sub_folders
from titokctl.data.sources.label_lists import numbered
from titokctl.data.sources.shard_checks import label_remarks
from titokctl.data.sources.source import Counts, Sample, SeekableSource, description_of, units_of
from titokctl.errors import UserError, install
from titokctl.formats.file_kind import described, head_of, hint_for, kind_of
from titokctl.formats.local_file import FileState, Identity, changed, retried

T = TypeVar("T")

KIND = "parquet"
_LABELS = ("label", "labels", "cls", "class", "class_id", "target")
_LABEL_LIKE = ("label", "class", "target")
_IMAGES = ("image", "img", "jpg", "png", "webp")
_KEPT_BYTES = 256 << 20
_MAX_GROUP_BYTES = 8 << 30


@dataclass
class ParquetSource(SeekableSource):
    """Rows of several files, in order. `groups` has a row per row group: file, row group, first position."""

    paths: list[Path] = field(default_factory=list)
    column: str = "image"
    states: list[FileState] = field(default_factory=list)
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
        path, number = self.paths[int(self.groups[group, 0])], int(self.groups[group, 1])
        _check_state(path, self.states[int(self.groups[group, 0])])

        def read(file: Any) -> list[bytes]:
            table = file.read_row_group(number, columns=[self.column])
            return [_bytes_of(cell) for cell in table.column(self.column).to_pylist()]

        images = _reading(path, read)
        _check_state(path, self.states[int(self.groups[group, 0])])
        ends = [*self.groups[1:, 2].tolist(), len(self)]
        # A group may be followed by one of another file, or by empty ones: they have no rows in between.
        if len(images) != ends[group] - int(self.groups[group, 2]):
            raise UserError(f"{path} is damaged: row group {number} has another number of rows than the file says")
        return images


def _bytes_of(cell: Any) -> bytes:
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    return data if isinstance(data, bytes) else b""


def _check_state(path: Path, then: FileState) -> None:
    """Raise UserError if a file is no longer the one whose rows were listed."""
    now = FileState.of(retried(path.stat, path))
    if now != then:
        raise changed(path, then, now)


def parquet_in(path: Path, split: str | None = None) -> list[Path]:
    """Return the parquet files of one split in a folder, sorted.

    They lie in the folder, in its `data/`, or in folders of the splits, also below that of one configuration, as the
    Hub converts data sets (default/train/0000.parquet). The split is that of a file's folder, or the start of its name.

    Args:
        split: None for `train`, or for all files if none is of that split.

    Raises UserError for several configurations, or if there is no file of the split.
    """
    files = _files_in(path) or _files_in(path / "data")
    files = files or [file for name in SPLITS for file in _files_in(path / name)]
    if not files:
        # Only where the names of splits are: listing all folders of a large set of images takes seconds.
        files = [file for name in sub_folders(path) for s in SPLITS for file in _files_in(path / name / s)]
    folders = {p.parent.parent for p in files if p.parent.name in SPLITS}
    if len(folders) > 1:
        named = ", ".join(sorted(folder.name for folder in folders))
        raise UserError(f"{path} holds several configurations: {named}", f"name one: {min(folders)}")
    wanted = "train" if split in (None, NO_SPLIT) else str(split)
    found = [p for p in files if p.parent.name == wanted or re.match(rf"{re.escape(wanted)}([-_.]|$)", p.stem)]
    if split not in (None, NO_SPLIT) and files and not found:
        raise UserError(f"no parquet file in {path} is of the split {split}", f"the first one is {files[0].name}")
    return found or files


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.parquet") if not path.name.startswith("."))


@dataclass(frozen=True)
class _Head:
    """The facts of one file without its images: rows of each row group; label and name of each row ("" for none)."""

    column: str
    label_column: str | None
    class_names: list[str]
    rows: list[int]
    labels: list[Any]
    names: list[str]


def open_parquet(paths: Sequence[Path], choices: Choices = NO_CHOICES) -> ParquetSource:
    """Open parquet files, in the order given.

    Raises:
        UserError: pyarrow is missing; a file can't be read, has no images, or has other classes than the first; it is
            not clear which column holds images or labels.
    """
    states = [FileState.of(retried(path.stat, path)) for path in paths]
    heads = [_reading(path, lambda file: _head(file, choices)) for path in paths]
    for path, head in zip(paths, heads, strict=True):
        if (head.column, head.class_names) != (heads[0].column, heads[0].class_names):
            raise UserError(f"{path} has other classes or columns than {paths[0]}", "use files of one data set")
    if not sum(sum(head.rows) for head in heads):
        raise UserError(f"no images in {len(paths)} parquet files", "name files with rows, or a folder with such files")
    column = heads[0].label_column
    labels, names = numbered([label for head in heads for label in head.labels], f"the column {column}")
    class_names = heads[0].class_names or names
    if class_names and labels.max() >= len(class_names):
        raise UserError(f"the files contain the label {labels.max()}, but there are {len(class_names):,} class names")
    units = units_of([(path.name, sum(head.rows)) for path, head in zip(paths, heads, strict=True)])
    resolved = [str(path.resolve()) for path in paths]
    identity = Identity.of(paths, states)
    listing = _listing(paths, states, heads, labels)
    description = description_of(KIND, resolved, len(labels), listing, identity, Counts())
    made = choices.record()
    where = f"labels from the column {column}, " if column else "no labels: no column holds any, "
    return ParquetSource(
        class_names,
        description | ({"choices": made} if made else {}),
        units,
        remarks=[f"{where}images from the column {heads[0].column}", *label_remarks([labels], names if column else [])],
        paths=list(paths),
        column=heads[0].column,
        states=states,
        groups=_groups(heads),
        row_labels=labels,
        row_keys=_keys(paths, heads),
    )


def _head(file: Any, choices: Choices) -> _Head:
    schema = file.schema_arrow
    column = _image_column(schema, choices.image_key)
    label = _label_column(schema, choices.label_key) if choices.use_labels else None
    kind, count = schema.field(column).type, file.metadata.num_rows
    has_path = _holds_images(kind) and kind.get_field_index("path") >= 0
    table = file.read(columns=[*([f"{column}.path"] if has_path else []), *([label] if label else [])])
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


def _keys(paths: Sequence[Path], heads: Sequence[_Head]) -> list[str]:
    """Return the images' names without extension if all differ, otherwise file and row."""
    names = [name.rpartition(".")[0] or name for head in heads for name in head.names]
    if all(names) and len(set(names)) == len(names):
        return names
    return [f"{path.stem}/{i:08d}" for path, head in zip(paths, heads, strict=True) for i in range(len(head.names))]


def _listing(paths: Sequence[Path], states: Sequence[FileState], heads: Sequence[_Head], labels: np.ndarray) -> str:
    """Return the SHA-256 of the files' names and sizes, their rows and labels."""
    total = hashlib.sha256()
    first = 0
    for path, state, head in zip(paths, states, heads, strict=True):
        total.update(os.fsencode(path.name) + f"\0{state.size} {head.rows}\n".encode())
        total.update(labels[first : first + len(head.labels)].tobytes())
        first += len(head.labels)
    return total.hexdigest()


def _reading(path: Path, use: Callable[[Any], T]) -> T:
    """Return use(open ParquetFile). Raises UserError, which names the file, when it can't be read."""
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UserError("parquet files need the package pyarrow, which is not installed", install("parquet")) from error
    import pyarrow as pa

    try:
        with ArrowFile(path) if path.suffix == ARROW else pq.ParquetFile(path) as file:
            return use(file)
    except UserError as error:
        raise UserError(f"{path}: {error.message}", error.hint) from error
    # Names and metadata that are damaged raise errors of Python's.
    except (pa.ArrowException, OSError, MemoryError, ValueError, LookupError, OverflowError) as error:
        text = " ".join(str(error).split())
        head = head_of(path)
        kind = kind_of(head)
        what = text if kind is None or kind.name in ("parquet", "arrow") else described(head)
        hint = hint_for(head, path, "copy or download it again")
        raise UserError(f"{path} can't be read as {path.suffix[1:]}: {what}", hint) from error
