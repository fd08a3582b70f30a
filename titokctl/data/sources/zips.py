"""Zip archives of images, as StyleGAN's and EDM's dataset_tool write them: images, and labels in dataset.json.

Images may lie in folders, which are not classes. Members are read by position; nothing is unpacked to the disk.
"""

import hashlib
import io
import os
import threading
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from titokctl.data.sources.choices import NO_CHOICES, Choices
from titokctl.data.sources.folder_listing import HIDDEN, is_image, suffix_of
from titokctl.data.sources.label_lists import FILES, MAX_BYTES, find_list, numbered
from titokctl.data.sources.source import (
    Counts,
    Rejected,
    Sample,
    SeekableSource,
    description_of,
    units_of,
    with_labelling,
)
from titokctl.errors import UserError
from titokctl.formats.file_kind import HEAD_BYTES, described, head_of, hint_for, image_kind
from titokctl.formats.local_file import FileState, Identity, changed, retried
from titokctl.formats.shard_scan import MAX_IMAGE_BYTES

KIND = "zip"
T = TypeVar("T")
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)


class _Archive:
    """A zip file that stays open; threads may read from it at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state = FileState.of(retried(path.stat, path))
        self._lock = threading.Lock()
        self._zip = self._guarded(lambda: zipfile.ZipFile(path))

    def __reduce__(self) -> tuple[Any, ...]:
        """Open the archive anew in another process, which refuses it if it was changed since."""
        return _Archive, (self.path,), {"state": self.state}

    def members(self) -> list[zipfile.ZipInfo]:
        """Return all members that are not folders, sorted by name."""
        found = [member for member in self._zip.infolist() if not member.is_dir()]
        return sorted(found, key=lambda member: member.filename)

    def read(self, member: zipfile.ZipInfo, limit: int) -> bytes:
        """Return a member, or its first `limit` bytes.

        Raises UserError when the archive is damaged, or was changed since it was opened.
        """

        def read() -> bytes:
            with self._lock:
                assert isinstance(self._zip.fp, io.IOBase)
                now = FileState.of(os.fstat(self._zip.fp.fileno()))
                if now != self.state:
                    raise changed(self.path, self.state, now)
                with self._zip.open(member) as file:
                    return file.read(limit)

        return self._guarded(lambda: retried(read, self.path))

    def _guarded(self, use: Callable[[], T]) -> T:
        try:
            return use()
        except _DAMAGE as error:
            head = head_of(self.path)
            what = str(error) if head.startswith(b"PK") else described(head)
            hint = hint_for(head, self.path, "copy or download it again")
            raise UserError(f"{self.path} is not a whole zip archive: {what}", hint) from error
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror}") from error


@dataclass
class ZipSource(SeekableSource):
    """The images in an archive, in the order of their names."""

    archive: _Archive = field(kw_only=True)
    members: list[zipfile.ZipInfo] = field(default_factory=list)
    image_labels: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))

    def read_many(self, positions: Sequence[int] | np.ndarray) -> list[Sample]:
        wanted = [int(p) for p in positions]
        if wanted and not 0 <= min(wanted) <= max(wanted) < len(self.members):
            raise IndexError(f"samples {min(wanted)} to {max(wanted)} of {len(self.members)}")
        return [
            Sample(
                _key(self.members[p]),
                int(self.image_labels[p]),
                self.archive.read(self.members[p], MAX_IMAGE_BYTES + 1),
            )
            for p in wanted
        ]

    def labels(self) -> np.ndarray:
        return self.image_labels.copy()

    def keys(self) -> list[str]:
        return [_key(member) for member in self.members]

    def sizes(self) -> np.ndarray:
        return np.array([member.file_size for member in self.members], np.int64)


def open_zip(path: Path, choices: Choices = NO_CHOICES) -> ZipSource:
    """Open a zip archive of images. Raises UserError when it is damaged, has no images, or its labels don't fit."""
    archive = _Archive(path)
    members, others, passed_over, problems = _sorted_out(archive)
    listed = None
    if choices.use_labels:
        by_name = {member.filename: member for member in others}
        read = lambda name: archive.read(by_name[name], MAX_BYTES) if name in by_name else None  # noqa: E731
        listed = find_list(read, choices.label_key)
    if not members:
        raise UserError(f"no images in {path}", "name a zip archive of image files")
    values = listed.of([member.filename for member in members]) if listed else [None] * len(members)
    labels, class_names = numbered(values, f"{listed.file if listed else 'it'} of {path}")
    if listed is not None:
        passed_over -= Counter([suffix_of(listed.file)])
    description = description_of(
        KIND,
        [str(path.resolve())],
        len(members),
        _listing(members),
        Identity.of([path], [archive.state]),
        Counts(passed_over, 1 if listed else 0),
    )
    made = choices.record()
    remark = listed.remark(values) if listed else f"no labels: {path} has no {' or '.join(FILES)}"
    return ZipSource(
        class_names,
        with_labelling(description, labels, class_names) | ({"choices": made} if made else {}),
        units_of([(path.name, len(members))]),
        problems,
        [remark],
        archive=archive,
        members=members,
        image_labels=labels,
    )


def _sorted_out(
    archive: _Archive,
) -> tuple[list[zipfile.ZipInfo], list[zipfile.ZipInfo], Counter[str], list[Rejected]]:
    """Return images, other members, the numbers of those by suffix, and what can't be read."""
    images, others, passed_over = [], [], Counter[str]()
    problems: list[Rejected] = []
    taken: set[str] = set()
    for member in archive.members():
        base = member.filename.rpartition("/")[2]
        if any(part.startswith(".") for part in member.filename.split("/")):
            passed_over[HIDDEN] += 1
        elif member.flag_bits & 1:
            problems.append(Rejected(_key(member), "encrypted", "it is encrypted"))
        elif not is_image(base) and image_kind(archive.read(member, HEAD_BYTES)) is None:
            others.append(member)
            passed_over[suffix_of(base)] += 1
        elif member.file_size > MAX_IMAGE_BYTES:
            problems.append(Rejected(_key(member), "too-large", f"{member.file_size:,} bytes"))
        elif member.filename in taken:
            problems.append(Rejected(_key(member), "duplicate", "the archive holds the name twice"))
        else:
            taken.add(member.filename)
            images.append(member)
    return images, others, passed_over, problems


def _key(member: zipfile.ZipInfo) -> str:
    return (member.filename.rpartition(".")[0] or member.filename).encode("utf-8", "backslashreplace").decode()


def _listing(members: Sequence[zipfile.ZipInfo]) -> str:
    """Return the SHA-256 of names, sizes and checksums."""
    total = hashlib.sha256()
    for member in members:
        line = f"{member.filename}\0{member.file_size} {member.CRC}\n"
        total.update(line.encode("utf-8", "backslashreplace"))
    return total.hexdigest()
