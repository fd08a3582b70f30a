"""The two interfaces of image sources: `Source`, a stream of units, and `SeekableSource`, which also reads by position.

A source is a fixed sequence of samples, divided into units of at most 1,024 samples (a whole shard where it can only be
read from front to end). A process claims one unit at a time. The order of samples and units is fixed while the files
don't change. To add a kind of source, write a module with a subclass and name it in `opening.py`.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from titokctl.formats.local_file import Identity

UNIT_SIZE = 1024


@dataclass(frozen=True)
class Sample:
    """One image file. `key` names it in messages and caches; `label` is -1 for an image without one."""

    key: str
    label: int
    data: bytes


@dataclass(frozen=True)
class Unit:
    """Samples `first` to `first + count` of a source; `name` says in which file or folder they are.

    `state` changes with the version of a file on a server, so that only what changed is read again; "" if nothing is
    known, or if the source as a whole is compared.
    """

    index: int
    first: int
    count: int
    name: str
    state: str = ""


@dataclass(frozen=True)
class Rejected:
    """A sample that has no usable pixels.

    Every list of rejected samples on disk has these three fields.

    Args:
        key: the sample's key.
        kind: a stable word for the kind of fault.
        reason: the fault in words.
    """

    key: str
    kind: str
    reason: str

    @classmethod
    def of(cls, record: Mapping[str, str]) -> "Rejected":
        """Return the entry that a list on disk holds; the first lists of shards call the reason `text`."""
        return cls(record["key"], record["kind"], record.get("reason", record.get("text", "")))


@dataclass(frozen=True)
class Counts:
    """Numbers of the files of a folder, or members of shards, that are not images.

    Samples, problems and these are all files and members that were found, hidden ones included.

    Args:
        passed_over: files that were not used, by suffix or type.
        label_files: files that were read as labels.
    """

    passed_over: Mapping[str, int] = field(default_factory=dict)
    label_files: int = 0


@dataclass(frozen=True)
class OpenUnit:
    """The samples of one unit, ready to be read.

    Args:
        count: number of samples that can be read. A source without positions may have fewer than `Unit.count`, or more
            if a shard has samples that its count leaves out, such as a second image of a key.
        read: `read(begin, end)` returns samples `begin` to `end` of the unit. Threads may call it at once.
        rejected: samples that turned out unusable when the unit was opened.
        counts: of members that are not images, if the source as a whole does not know them.
    """

    count: int
    read: Callable[[int, int], list[Sample]]
    rejected: list[Rejected] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)


@dataclass
class Source(ABC):
    """A sequence of samples that is read unit by unit.

    Args:
        class_names: names by label; may be empty.
        description: JSON that says what the source was made of, as `description_of` specifies it.
        units: all units, in order.
        problems: samples that were left out before anything was decoded.
        remarks: sentences for the user: which classes, split and order were chosen, and what has no label.
    """

    class_names: list[str]
    description: dict[str, Any]
    units: list[Unit]
    problems: list[Rejected] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def passed_over(self) -> dict[str, int]:
        """Number of files or members that are not images, by suffix or type."""
        found: dict[str, int] = self.description.get("passed_over", {})
        return found

    def __len__(self) -> int:
        """Return the number of samples."""
        return self.units[-1].first + self.units[-1].count if self.units else 0

    @abstractmethod
    def open_unit(self, unit: Unit) -> OpenUnit:
        """Open one unit for reading. Raises UserError when its files can't be read."""

    @abstractmethod
    def by_position(self) -> "SeekableSource":
        """Return this source as one that reads by position. Raises UserError when it can't."""

    def read_unit(self, unit: Unit) -> tuple[list[Sample], list[Rejected]]:
        """Return the samples of one unit, and those that turned out unusable. Raises as `open_unit`."""
        opened = self.open_unit(unit)
        return opened.read(0, opened.count), opened.rejected

    def is_whole(self, samples: int) -> bool:
        """Return True if `samples` rows and unusable samples together account for the whole source."""
        return samples >= len(self) + len(self.problems)


class SeekableSource(Source):
    """A source whose samples can be read by position."""

    @abstractmethod
    def read_many(self, positions: Sequence[int] | np.ndarray) -> list[Sample]:
        """Return the samples at `positions`, in that order. Raises IndexError for a position outside the source."""

    @abstractmethod
    def labels(self) -> np.ndarray:
        """Return all labels, (len,) int32, -1 for none, without reading an image."""

    @abstractmethod
    def keys(self) -> list[str]:
        """Return all keys, in order."""

    @abstractmethod
    def sizes(self) -> np.ndarray:
        """Return the size in bytes of each image file, (len,) int64."""

    def open_unit(self, unit: Unit) -> OpenUnit:
        return OpenUnit(unit.count, lambda begin, end: self.read_many(range(unit.first + begin, unit.first + end)))

    def by_position(self) -> "SeekableSource":
        return self

    def is_whole(self, samples: int) -> bool:
        return samples == len(self) + len(self.problems)

    def sample(self, position: int) -> Sample:
        """Return the sample at `position`. Raises IndexError for a position outside the source."""
        return self.read_many([position])[0]


def description_of(
    kind: str, paths: Sequence[str], num_samples: int, listing: str, identity: Identity, counts: Counts
) -> dict[str, Any]:
    """Return the fields that the description of every source has.

    Args:
        listing: SHA-256 of names, sizes and labels. It stays when the files are moved or copied.
        identity: of the files.
        counts: of files or members that are not images.

    `fingerprint` covers all of it but `counts`: it changes whenever the images may have changed.
    """
    fingerprint = hashlib.sha256(f"{listing}\0{identity.states}\0{identity.contents}".encode()).hexdigest()
    return {
        "kind": kind,
        "paths": list(paths),
        "num_samples": num_samples,
        "fingerprint": fingerprint,
        "listing": listing,
        "contents": identity.contents,
        "contents_whole": identity.is_whole,
        "passed_over": dict(sorted(counts.passed_over.items())),
        "label_files": counts.label_files,
    }


def with_labelling(description: dict[str, Any], labels: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
    """Return the description of a source whose listing says nothing about labels, with a hash of them."""
    digest = hashlib.sha256(labels.astype("<i4").tobytes() + "\n".join(class_names).encode()).hexdigest()
    fingerprint = hashlib.sha256(f"{description['fingerprint']}\0{digest}".encode()).hexdigest()
    return description | {"labelling": digest, "fingerprint": fingerprint}


def difference(recorded: Mapping[str, Any], found: Mapping[str, Any], moved: bool = False) -> str | None:
    """Return in words how a source differs from the recorded one; None if it holds the same images.

    Args:
        recorded: the description in a product, perhaps of an older version, which knew names and sizes only.
        found: the description of the source as it is now.
        moved: the user named the source, so that other paths and times are expected.
    """
    then, now = recorded.get("fingerprint"), found.get("fingerprint")
    if then == now and recorded.get("versions") in (None, found.get("versions")):
        return None
    if "listing" not in recorded and then == found.get("listing"):
        return None
    if recorded.get("listing", then) != found.get("listing"):
        return "names, sizes or labels differ"
    if recorded.get("labelling", found.get("labelling")) != found.get("labelling"):
        return "the labels differ"
    if "versions" in recorded and "versions" in found:
        return None if recorded["versions"] == found["versions"] else "the server has other versions of the files"
    # Of files on a server no contents are known, which may be compared with a copy here.
    if "versions" not in {*recorded, *found} and recorded.get("contents") != found.get("contents"):
        return "the names and sizes are the same, but the contents differ"
    exact = recorded.get("contents_whole") and found.get("contents_whole")
    return None if moved or exact else "the files were moved or written again"


def passed_over_in_words(passed_over: Mapping[str, int]) -> str:
    """Return "12 .txt, 3 links", the most frequent first."""
    most = sorted(passed_over.items(), key=lambda one: (-one[1], one[0]))
    return ", ".join(f"{count:,} {what}" for what, count in most)


def units_of(parts: Sequence[tuple[str, int]]) -> list[Unit]:
    """Divide consecutive parts (name, number of samples) into units; no unit spans two parts."""
    units: list[Unit] = []
    begin = 0
    for name, count in parts:
        for first in range(0, count, UNIT_SIZE):
            n = min(UNIT_SIZE, count - first)
            units.append(Unit(len(units), begin + first, n, f"{name}[{first}:{first + n}]"))
        begin += count
    return units
