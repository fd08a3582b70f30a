"""WebDataset tar shards, read by position with an index of the offsets of their samples.

Shards come as a folder of .tar files, as brace patterns (train-{0000..0146}.tar), or as several paths. `index.json`
beside them, as `titokctl shard` writes it, gives the class names; counts in it and in other tools' files are checked.
A single tar with a tar per class (ILSVRC2012_img_train.tar) is read as it is.
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

import numpy as np

from titokctl.data.sources.shard_checks import (
    check_counts,
    check_distinct,
    check_samples,
    contiguous_names,
    joined_names,
)
from titokctl.data.sources.source import Rejected, Sample, SeekableSource, description_of, units_of
from titokctl.errors import UserError
from titokctl.formats.class_tars import is_class_tars
from titokctl.formats.shard_index import CLASS_TARS, SAMPLES, ShardIndex, open_index
from titokctl.formats.shard_set import read_set_index

KIND = "shards"
_MAX_OPEN = 256
_MAX_SHARDS = 1_000_000
_NAMED = 20  # of cut shards, in a message
_CUT_HINT = "copy or download it again; `titokctl tokenize --accept-cut` reads its whole members"


class _OpenShards:
    """File descriptors of shards, kept open; of very many shards only the first ones."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._open: dict[int, int] = {}
        self._lock = threading.Lock()

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """Read `size` bytes of shard number `shard` from `offset` on."""
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

    def __del__(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)


@dataclass
class ShardSource(SeekableSource):
    """Samples of several shards in the order of the shards, then of their images."""

    paths: list[Path] = field(default_factory=list)
    indices: list[ShardIndex] = field(default_factory=list)
    prefixes: list[str] = field(default_factory=list)

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
        return [self._key(shard, i) for shard, index in enumerate(self.indices) for i in range(len(index))]

    def sizes(self) -> np.ndarray:
        return np.concatenate([index.sizes for index in self.indices]).astype(np.int64)

    def _key(self, shard: int, i: int) -> str:
        return (self.prefixes[shard] if self.prefixes else "") + self.indices[shard].key(i)

    def _read(self, shard: int, position: int) -> Sample:
        index = self.indices[shard]
        i = position - (int(self._ends[shard]) - len(index))
        size = int(index.sizes[i])
        try:
            data = self._files.read(shard, int(index.offsets[i]), size)
        except OSError as error:
            raise UserError(f"cannot read the shard {self.paths[shard]}: {error.strerror}") from error
        if len(data) != size:
            raise UserError(f"the shard {self.paths[shard]} was truncated while it was read")
        return Sample(self._key(shard, i), int(index.labels[i]), data)


def shards_in(path: Path) -> list[Path]:
    """Return the .tar files of a folder, sorted by name, without hidden ones."""
    return sorted(p for p in path.glob("*.tar") if not p.name.startswith(".") and p.is_file())


def expand_pattern(pattern: str) -> list[str]:
    """Expand a brace pattern, in its order. Raises UserError when it is malformed or gives too many names."""
    from braceexpand import braceexpand

    # braceexpand writes out whole ranges, so their lengths are checked before.
    lengths = (
        abs(int(last) - int(first)) + 1 for first, last in re.findall(r"\{(-?\d{1,18})\.\.(-?\d{1,18})", pattern)
    )
    if math.prod(lengths) > _MAX_SHARDS:
        raise UserError(f"{pattern!r} gives more than {_MAX_SHARDS:,} shards")
    try:
        found = list(islice(braceexpand(pattern), _MAX_SHARDS + 1))
    except ValueError as error:
        raise UserError(f"the braces in {pattern!r} don't match", "e.g. shards/train-{0000..0146}.tar") from error
    if len(found) > _MAX_SHARDS:
        raise UserError(f"{pattern!r} gives more than {_MAX_SHARDS:,} shards")
    return found


def open_shards(paths: Sequence[Path], accept_cut: bool = False, keep_index: bool = True) -> ShardSource:
    """Open the shards `paths`, in that order.

    Args:
        accept_cut: read truncated shards as far as their members are whole.
        keep_index: save the index of each shard for next time.

    Raises:
        UserError: a shard is missing, not a tar, or cut; a count differs from the one in a file beside it; a label has
            two names; no image can be used.
    """
    check_distinct([str(path) for path in paths])
    layout = CLASS_TARS if len(paths) == 1 and is_class_tars(paths[0]) else SAMPLES
    found = [open_index(path, layout, keep_index) for path in paths]
    _check_whole(paths, found, accept_cut)
    check_counts(paths, found)
    names = joined_names([str(path) for path in paths], found)
    class_names = _class_names(paths) or contiguous_names(names)
    files = _OpenShards(paths)
    checked = check_samples(
        [path.name for path in paths],
        found,
        len(class_names),
        lambda shard, i: files.read(shard, int(found[shard].offsets[i]), int(found[shard].sizes[i])),
    )
    indices = checked.indices
    units = units_of([(path.name, len(index)) for path, index in zip(paths, indices, strict=True)])
    if not units:
        raise _nothing(paths, checked.problems)
    kind, resolved = CLASS_TARS if layout == CLASS_TARS else KIND, [str(path.resolve()) for path in paths]
    description = description_of(kind, resolved, units[-1].first + units[-1].count, _fingerprint(paths, indices))
    cut = [str(path) for path, index in zip(paths, indices, strict=True) if index.cut]
    if cut:
        description["accepted_cut_shards"] = cut
    return ShardSource(
        class_names,
        description,
        units,
        checked.problems,
        paths=list(paths),
        indices=indices,
        prefixes=checked.prefixes,
    )


def _check_whole(paths: Sequence[Path], found: Sequence[ShardIndex], accept_cut: bool) -> None:
    """Raise UserError, which names all shards that are cut, unless they are accepted."""
    cut = [(path, index) for path, index in zip(paths, found, strict=True) if index.cut and not accept_cut]
    if len(cut) == 1:
        raise UserError(f"the shard {cut[0][0]} is incomplete: {cut[0][1].cut}", _CUT_HINT)
    if cut:
        named = "; ".join(f"{path} ({index.cut})" for path, index in cut[:_NAMED])
        more = f"; and {len(cut) - _NAMED:,} more" if len(cut) > _NAMED else ""
        raise UserError(f"{len(cut):,} shards are incomplete: {named}{more}", _CUT_HINT)


def _nothing(paths: Sequence[Path], problems: Sequence[Rejected]) -> UserError:
    if problems:
        first = problems[0]
        text = f"none of the {len(problems):,} samples in {len(paths)} shards can be used: {first.key} ({first.reason})"
        return UserError(text, "labels are class indices from 0 on")
    text = f"no images in {paths[0]}" if len(paths) == 1 else f"no images in {len(paths)} shards ({paths[0]} ...)"
    return UserError(text, "looked for jpg, jpeg, png and webp members")


def _class_names(paths: Sequence[Path]) -> list[str]:
    """Return the class names in the index.json files beside the shards."""
    records = [read_set_index(folder) for folder in dict.fromkeys(path.parent for path in paths)]
    lists = [record.get("class_names", []) for record in records if record is not None]
    if any(names != lists[0] for names in lists):
        raise UserError("the shards' folders have different class names", "use shards that were made together")
    return [str(name) for name in lists[0]] if lists else []


def _pread(descriptor: int, size: int, offset: int) -> bytes:
    """Read `size` bytes, or fewer at the end of the file; a single pread may return less than requested."""
    data = os.pread(descriptor, size, offset)
    while len(data) < size and (more := os.pread(descriptor, size - len(data), offset + len(data))):
        data += more
    return data


def _fingerprint(paths: Sequence[Path], indices: Sequence[ShardIndex]) -> str:
    """Return the SHA-256 of shard names, keys, sizes and labels."""
    total = hashlib.sha256()
    for path, index in zip(paths, indices, strict=True):
        total.update(os.fsencode(path.name) + b"\0" + str(len(index)).encode() + b"\n")
        for part in (index.keys, index.key_ends, index.sizes, index.labels):
            total.update(part.tobytes())
    return total.hexdigest()
