"""The two interfaces of image sources: `Source`, a stream of units, and `SeekableSource`, which also reads by position.

A source is a fixed sequence of samples, divided into units of at most 1,024 samples (a whole shard where it can only be
read from front to end). A process claims one unit at a time. The order of samples and units is fixed while the files
don't change. To add a kind of source, write a module with a subclass and name it in `opening.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

UNIT_SIZE = 1024


@dataclass(frozen=True)
class Sample:
    """One image file. `key` names it in messages and caches; `label` is -1 for an image without one."""

    key: str
    label: int
    data: bytes


@dataclass(frozen=True)
class Unit:
    """Samples `first` to `first + count` of a source; `name` says in which file or folder they are."""

    index: int
    first: int
    count: int
    name: str


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
class OpenUnit:
    """The samples of one unit, ready to be read.

    Args:
        count: number of samples that can be read. A source without positions may have fewer than `Unit.count`, or more
            if a shard has samples that its count leaves out, such as a second image of a key.
        read: `read(begin, end)` returns samples `begin` to `end` of the unit. Threads may call it at once.
        rejected: samples that turned out unusable when the unit was opened.
    """

    count: int
    read: Callable[[int, int], list[Sample]]
    rejected: list[Rejected] = field(default_factory=list)


@dataclass
class Source(ABC):
    """A sequence of samples that is read unit by unit.

    Args:
        class_names: names by label; may be empty.
        description: JSON that says what the source was made of. Its `fingerprint` changes with names and sizes.
        units: all units, in order.
        problems: samples that were left out before anything was decoded.
    """

    class_names: list[str]
    description: dict[str, Any]
    units: list[Unit]
    problems: list[Rejected] = field(default_factory=list)

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


def description_of(kind: str, paths: Sequence[str], num_samples: int, fingerprint: str) -> dict[str, Any]:
    """Return the fields that the description of every source has."""
    return {"kind": kind, "paths": list(paths), "num_samples": num_samples, "fingerprint": fingerprint}


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
