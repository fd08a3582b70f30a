"""WebDataset tar shards, read by position with an index of the offsets of their samples.

Shards come as a folder of .tar files, as brace patterns (train-{0000..0146}.tar), or as several paths. `index.json`
beside them, as `titokctl shard` writes it, gives the class names; counts in it and in other tools' files are checked.
Shards may be compressed with gzip (.tar.gz, .tgz); `packed_shards` says how these are read.
A single tar with a tar per class (ILSVRC2012_img_train.tar) is read as it is.
"""

import hashlib
import math
import os
import re
import resource
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from titokctl.context import Context
from titokctl.data.sources.choices import NO_CHOICES, Choices
from titokctl.data.sources.packed_shards import ShardFile, shard_files
from titokctl.data.sources.shard_checks import (
    check_counts,
    check_distinct,
    check_samples,
    contiguous_names,
    joined_names,
    label_remarks,
    numbered_names,
    without_labels,
)
from titokctl.data.sources.source import Counts, Rejected, Sample, SeekableSource, description_of, units_of
from titokctl.errors import UserError
from titokctl.formats.class_tars import is_class_tars, starts_with_tar
from titokctl.formats.gzip_stream import CUT_HINT, GzipStream, is_shard, plain_name
from titokctl.formats.local_file import FileState, Identity, changed, retried
from titokctl.formats.shard_index import CLASS_TARS, SAMPLES, ShardIndex, index_of_stream, not_a_tar, open_index
from titokctl.formats.shard_scan import Keys
from titokctl.formats.shard_set import read_set_index
from titokctl.formats.tar_headers import BrokenTar
from titokctl.formats.unpacked_shard import Held, checked_start
from titokctl.readable import counted, first_few

KIND = "shards"
_MAX_OPEN = 256
_ENDLESS = 1 << 62
_MAX_SHARDS = 1_000_000
_NAMED = 20  # of cut shards, in a message
_HINTS = {
    "several-dots": "choose the image with --image-key, e.g. --image-key image.png",
    "several-images": "choose the image with --image-key",
    "no-image": "choose the image with --image-key, or copy the shards again",
    "too-large": "leave the largest images out of the shards",
    "link": "pack the shards again with the files that the links lead to (tar --dereference)",
}


class _OpenShards:
    """File descriptors of shards, kept open; of very many shards only the first ones.

    A shard that has changed since its index was made is refused: offsets and labels would belong to other images.
    """

    def __init__(self, files: Sequence[ShardFile], states: Sequence[FileState]) -> None:
        self._held = [Held(folder) for folder in {file.at.parent for file in files if file.is_copy}]
        self._files, self._states = files, states
        self._paths = [file.at for file in files]
        self._streams: dict[int, GzipStream] = {}
        self._open: dict[int, int] = {}
        self._stale: list[int] = []
        self._max_open = min(_MAX_OPEN, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Open the shards anew in another process."""
        return _OpenShards, (self._files, self._states)

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """Read `size` bytes of shard number `shard` from `offset` on.

        Raises UserError when it can't be read, or was changed since it was indexed.
        """
        if self._files[shard].is_stream:
            return self._read_stream(shard, offset, size)
        return retried(lambda: self._read(shard, offset, size), self._paths[shard])

    def _read_stream(self, shard: int, offset: int, size: int) -> bytes:
        """Read from a compressed shard, which is quick only in the order of its members."""
        with self._lock:
            if shard not in self._streams:
                self._streams[shard] = self._files[shard].stream()
            self._streams[shard].seek(offset)
            return self._streams[shard].read(size)

    def _read(self, shard: int, offset: int, size: int) -> bytes:
        with self._lock:
            kept = self._open.get(shard)
            if kept is None and len(self._open) < self._max_open:
                kept = self._open[shard] = os.open(self._paths[shard], os.O_RDONLY)
        if kept is None:
            descriptor = os.open(self._paths[shard], os.O_RDONLY)
            try:
                return self._checked(shard, descriptor, offset, size)
            finally:
                os.close(descriptor)
        try:
            return self._checked(shard, kept, offset, size)
        except OSError:
            with self._lock:  # other threads may be reading it: it is closed at the end
                if self._open.get(shard) == kept:
                    self._stale.append(self._open.pop(shard))
            raise

    def _checked(self, shard: int, descriptor: int, offset: int, size: int) -> bytes:
        now, then = FileState.of(os.fstat(descriptor)), self._states[shard]
        if now != then:
            raise changed(self._paths[shard], then, now)
        data = _pread(descriptor, size, offset)
        if len(data) != size:
            raise UserError(f"the shard {self._paths[shard]} was truncated while it was read")
        return data

    def __del__(self) -> None:
        for descriptor in (*self._open.values(), *self._stale):
            os.close(descriptor)
        for stream in self._streams.values():
            stream.close()
        for held in self._held:
            held.release()


@dataclass
class ShardSource(SeekableSource):
    """Samples of several shards in the order of the shards, then of their images."""

    files: list[ShardFile] = field(default_factory=list)
    indices: list[ShardIndex] = field(default_factory=list)
    prefixes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._ends = np.cumsum([len(index) for index in self.indices], dtype=np.int64)
        self._files = _OpenShards(self.files, [index.state for index in self.indices])

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
        data = self._files.read(shard, int(index.offsets[i]), size)
        return Sample(self._key(shard, i), int(index.labels[i]), data)


def shards_in(path: Path) -> list[Path]:
    """Return the shards in a folder, sorted by name, without hidden ones; a plain one replaces its compressed form."""
    try:
        names = {name for name in os.listdir(path) if is_shard(name) and not name.startswith(".")}
    except OSError:  # whoever reads the folder gets the error
        return []
    single = (name for name in names if plain_name(name) == name or plain_name(name) not in names)
    # A link that leads nowhere counts: to open it is an error.
    return [path / name for name in sorted(single, key=plain_name) if not (path / name).is_dir()]


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


def open_shards(
    paths: Sequence[Path],
    accept_cut: bool = False,
    keep_index: bool = True,
    choices: Choices = NO_CHOICES,
    context: Context | None = None,
) -> ShardSource:
    """Open the shards `paths`, in that order.

    Args:
        accept_cut: read truncated shards as far as their members are whole.
        keep_index: save the index of each shard for next time, and unpack compressed ones.
        choices: of members, and about labels.
        context: shows what is unpacked, and stops that after a signal.

    Raises:
        Stopped: after a signal.
        UserError: a shard is missing, not a tar, cut, or without images; a count differs from the one in a file beside
            it; a label has two names; no image can be used.
    """
    names = [str(path) for path in paths]
    check_distinct(names)
    located = shard_files(paths, keep_index, context, accept_cut)
    layout = CLASS_TARS if len(paths) == 1 and _holds_tars(located[0]) else SAMPLES
    keys = Keys(choices.image_key, choices.label_key) if choices.image_key or choices.label_key else None
    found = [_index_of(file, layout, keep_index, keys) for file in located]
    _check_whole(paths, found, accept_cut)
    check_counts(paths, found)
    if not choices.use_labels:
        found = [without_labels(index) for index in found]
    found, texts = numbered_names(found)
    joined = joined_names(names, found)
    class_names = texts or (_class_names(paths) if choices.use_labels else []) or contiguous_names(joined)
    files = _OpenShards(located, [index.state for index in found])
    checked = check_samples(
        [plain_name(path.name) for path in paths],
        found,
        len(class_names),
        lambda shard, i: files.read(shard, int(found[shard].offsets[i]), int(found[shard].sizes[i])),
    )
    indices = checked.indices
    units = units_of([(path.name, len(index)) for path, index in zip(paths, indices, strict=True)])
    if not units:
        raise _nothing(paths, checked.problems)
    return ShardSource(
        class_names,
        _description(located, found, indices, choices, layout),
        units,
        checked.problems,
        label_remarks([index.labels for index in indices], texts),
        files=located,
        indices=indices,
        prefixes=checked.prefixes,
    )


def _holds_tars(file: ShardFile) -> bool:
    """Return True if a shard is a tar of class tars."""
    if not file.is_stream:
        return is_class_tars(file.at)
    with file.stream() as stream:
        return starts_with_tar(stream, _ENDLESS)  # type: ignore[arg-type]


def _index_of(file: ShardFile, layout: str, keep: bool, keys: Keys | None) -> ShardIndex:
    if not file.is_stream:
        index = open_index(file.at, layout, keep, keys, named=file.path)
        return replace(index, cut=index.cut or file.cut)
    with file.stream() as stream:
        start = checked_start(stream, file.path)
        stream.seek(0)
        try:
            index = index_of_stream(stream, layout, keys)
        except BrokenTar as error:
            raise not_a_tar(file.path, error, start) from error
        return replace(index, cut=index.cut or stream.cut)


def _description(
    files: Sequence[ShardFile], found: Sequence[ShardIndex], used: Sequence[ShardIndex], choices: Choices, layout: str
) -> dict[str, Any]:
    """Return the description of shards: `found` are their indices, `used` those of the samples that can be used.

    Compressed shards are known by themselves, not by their copies.
    """
    paths = [file.path for file in files]
    states = [file.packed or index.state for file, index in zip(files, found, strict=True)]
    passed_over: Counter[str] = Counter()
    for index in found:
        passed_over.update(index.passed_over)
    counts = Counts(passed_over, sum(index.label_files for index in found))
    identity = Identity.of(paths, states)
    description = description_of(
        CLASS_TARS if layout == CLASS_TARS else KIND,
        [str(path.resolve()) for path in paths],
        sum(len(index) for index in used),
        _listing(paths, used),
        identity,
        counts,
    )
    cut = [str(path) for path, index in zip(paths, found, strict=True) if index.cut]
    made = choices.record()
    return description | ({"accepted_cut_shards": cut} if cut else {}) | ({"choices": made} if made else {})


def _check_whole(paths: Sequence[Path], found: Sequence[ShardIndex], accept_cut: bool) -> None:
    """Raise UserError, which names all shards that are cut, unless they are accepted."""
    cut = [(path, index) for path, index in zip(paths, found, strict=True) if index.cut and not accept_cut]
    if len(cut) == 1:
        raise UserError(f"the shard {cut[0][0]} is incomplete: {cut[0][1].cut}", CUT_HINT)
    if cut:
        named = first_few([f"{path} ({index.cut})" for path, index in cut], _NAMED, "; ")
        raise UserError(f"{len(cut):,} shards are incomplete: {named}", CUT_HINT)


def _nothing(paths: Sequence[Path], problems: Sequence[Rejected]) -> UserError:
    if problems:
        first = problems[0]
        samples, shards = counted(len(problems), "samples"), counted(len(paths), "shards")
        text = f"none of {samples} in {shards} can be used: {first.key} ({first.reason})"
        return UserError(text, _HINTS.get(first.kind, "`--no-labels` reads images whatever their labels are"))
    text = f"no images in {paths[0]}" if len(paths) == 1 else f"no images in {len(paths)} shards ({paths[0]} ...)"
    return UserError(text, "looked for jpg, png, webp and other images among the members")


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


def _listing(paths: Sequence[Path], indices: Sequence[ShardIndex]) -> str:
    """Return the SHA-256 of shard names, keys, sizes and labels."""
    total = hashlib.sha256()
    for path, index in zip(paths, indices, strict=True):
        total.update(os.fsencode(path.name) + b"\0" + str(len(index)).encode() + b"\n")
        for part in (index.keys, index.key_ends, index.sizes, index.labels):
            total.update(part.tobytes())
    return total.hexdigest()
