"""WebDataset tar shards, read by position through an index of where their samples lie.

Shards come as a folder of .tar files, as brace patterns (train-{0000..0146}.tar), or as several paths. `index.json`
beside them, as `titokctl shard` writes it, gives the class names and the counts they are checked against.
"""

import hashlib
import math
import os
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from titokctl.data.sources.source import Rejected, Sample, Source, units_of
from titokctl.errors import UserError
from titokctl.formats.shard_index import ShardIndex, open_index
from titokctl.formats.shard_set import INDEX_NAME, read_set_index

KIND = "shards"
_MAX_OPEN = 256
_MAX_SHARDS = 1_000_000


class _OpenShards:
    """File descriptors of shards, kept open; of very many shards, only some."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._open: dict[int, int] = {}
        self._lock = threading.Lock()

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """`size` bytes of shard number `shard` from `offset` on."""
        with self._lock:
            descriptor = self._open.get(shard)
            if descriptor is None and len(self._open) < _MAX_OPEN:
                descriptor = self._open[shard] = os.open(self._paths[shard], os.O_RDONLY)
        if descriptor is not None:
            return _pread(descriptor, size, offset)
        descriptor = os.open(self._paths[shard], os.O_RDONLY)
        try:
            return _pread(descriptor, size, offset)
        finally:
            os.close(descriptor)

    def __getstate__(self) -> dict[str, Any]:
        return {"_paths": self._paths}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_paths"])  # type: ignore[misc]

    def __del__(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)


@dataclass
class ShardSource(Source):
    """Samples of several shards in the order of the shards, then of their images."""

    paths: list[Path] = field(default_factory=list)
    indices: list[ShardIndex] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._ends = np.cumsum([len(index) for index in self.indices], dtype=np.int64)
        self._files = _OpenShards(self.paths)

    def read_many(self, positions: Sequence[int] | np.ndarray) -> list[Sample]:
        wanted = np.asarray(positions, np.int64)
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < len(self):
            raise IndexError(f"samples {wanted.min()} to {wanted.max()} of {len(self)}")
        shards = np.searchsorted(self._ends, wanted, side="right")
        return [self._read(int(s), int(p)) for s, p in zip(shards, wanted, strict=True)]

    def labels(self) -> np.ndarray:
        return np.concatenate([index.labels for index in self.indices]).astype(np.int32)

    def keys(self) -> list[str]:
        return [index.key(i) for index in self.indices for i in range(len(index))]

    def sizes(self) -> np.ndarray:
        return np.concatenate([index.sizes for index in self.indices]).astype(np.int64)

    def _read(self, shard: int, position: int) -> Sample:
        index = self.indices[shard]
        i = position - (int(self._ends[shard]) - len(index))
        size = int(index.sizes[i])
        try:
            data = self._files.read(shard, int(index.offsets[i]), size)
        except OSError as error:
            raise UserError(f"cannot read the shard {self.paths[shard]}: {error.strerror}") from error
        if len(data) != size:
            raise UserError(f"the shard {self.paths[shard]} became shorter while it was read")
        return Sample(index.key(i), int(index.labels[i]), data)


def shards_in(path: Path) -> list[Path]:
    """The .tar files of a folder, sorted by name, without hidden ones."""
    return sorted(p for p in path.glob("*.tar") if not p.name.startswith(".") and p.is_file())


def expand(pattern: str) -> list[Path]:
    """The paths a brace pattern stands for, in its order; a path without braces is itself."""
    from braceexpand import braceexpand

    # Ranges are written out at once: their lengths must be known before.
    lengths = (
        abs(int(last) - int(first)) + 1 for first, last in re.findall(r"\{(-?\d{1,18})\.\.(-?\d{1,18})", pattern)
    )
    if math.prod(lengths) > _MAX_SHARDS:
        raise UserError(f"{pattern!r} stands for more than {_MAX_SHARDS:,} shards")
    try:
        found = [Path(p) for p in islice(braceexpand(pattern), _MAX_SHARDS + 1)]
    except ValueError as error:
        raise UserError(f"the braces in {pattern!r} don't match", "e.g. shards/train-{0000..0146}.tar") from error
    if len(found) > _MAX_SHARDS:
        raise UserError(f"{pattern!r} stands for more than {_MAX_SHARDS:,} shards")
    return found


def open_shards(paths: Sequence[Path], accept_cut: bool = False) -> ShardSource:
    """The samples of the shards `paths`, in that order.

    Raises:
        UserError: a shard is missing, no tar, or cut; a count differs from index.json; there is no image at all.
    """
    twice = sorted({str(p) for p in paths if list(paths).count(p) > 1}) if len(set(paths)) < len(paths) else []
    if twice:
        raise UserError(f"the shard {twice[0]} is named twice")
    indices = [open_index(path, accept_cut) for path in paths]
    class_names = _class_names(paths, indices)
    problems = [Rejected(*problem) for index in indices for problem in index.problems]
    units = units_of([(path.name, len(index)) for path, index in zip(paths, indices, strict=True)])
    if not units:
        raise UserError(
            f"no images in {len(paths)} shards ({paths[0]} ...)", "looked for jpg, jpeg, png and webp members"
        )
    _check_labels(paths, indices, class_names)
    description = {
        "kind": KIND,
        "paths": [str(p.resolve()) for p in paths],
        "num_samples": units[-1].first + units[-1].count,
        "fingerprint": _fingerprint(paths, indices),
    }
    cut = [str(path) for path, index in zip(paths, indices, strict=True) if index.cut]
    if cut:
        description["accepted_cut_shards"] = cut
    return ShardSource(class_names, description, units, problems, paths=list(paths), indices=indices)


def _class_names(paths: Sequence[Path], indices: Sequence[ShardIndex]) -> list[str]:
    """Class names of the index.json files beside the shards, whose counts are checked on the way."""
    records = {folder: read_set_index(folder) for folder in dict.fromkeys(path.parent for path in paths)}
    found = {folder: record for folder, record in records.items() if record is not None}
    for path, index in zip(paths, indices, strict=True):
        shards = {s["name"]: s for s in found.get(path.parent, {}).get("shards", [])}
        if path.name in shards and shards[path.name]["samples"] != len(index):
            expected = shards[path.name]["samples"]
            raise UserError(f"{path} holds {len(index):,} images where {INDEX_NAME} says {expected:,}", "copy it again")
    lists = [record.get("class_names", []) for record in found.values()]
    if any(names != lists[0] for names in lists):
        raise UserError("the shards' folders name different classes", "take shards that were made together")
    return [str(name) for name in lists[0]] if lists else []


def _check_labels(paths: Sequence[Path], indices: Sequence[ShardIndex], class_names: list[str]) -> None:
    for path, index in zip(paths, indices, strict=True):
        highest = int(index.labels.max(initial=-1))
        if class_names and highest >= len(class_names):
            raise UserError(f"{path} holds the label {highest}, but there are {len(class_names):,} class names")


def _pread(descriptor: int, size: int, offset: int) -> bytes:
    """`size` bytes, or fewer at the end of the file; one read may give less than it was asked for."""
    data = os.pread(descriptor, size, offset)
    while len(data) < size and (more := os.pread(descriptor, size - len(data), offset + len(data))):
        data += more
    return data


def _fingerprint(paths: Sequence[Path], indices: Sequence[ShardIndex]) -> str:
    """SHA-256 over shard names, keys, sizes and labels."""
    total = hashlib.sha256()
    for path, index in zip(paths, indices, strict=True):
        total.update(os.fsencode(path.name) + b"\0" + str(len(index)).encode() + b"\n")
        for part in (index.keys, index.key_ends, index.sizes, index.labels):
            total.update(part.tobytes())
    return total.hexdigest()
