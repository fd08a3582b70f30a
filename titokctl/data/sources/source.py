"""What every source of images offers, whatever it is made of.

A source is a fixed sequence of samples. It is cut into units of at most 1,024 samples, the work a process claims at
once; both orders never change while the files don't. A new kind of source is one module with a subclass of `Source`,
named in `opening.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

UNIT_SIZE = 1024


@dataclass(frozen=True)
class Sample:
    """One image file. `key` names it for people and in caches; `label` is -1 when there is none."""

    key: str
    label: int
    data: bytes


@dataclass(frozen=True)
class Unit:
    """Samples `first` to `first + count` of a source; `name` says where they lie."""

    index: int
    first: int
    count: int
    name: str


@dataclass(frozen=True)
class Rejected:
    """A sample that gave no pixels: its key, a stable word for the kind of fault, and what was found.

    The same three names stand in every list of them on disk.
    """

    key: str
    kind: str
    reason: str

    @classmethod
    def of(cls, record: Mapping[str, str]) -> "Rejected":
        """One of such a list; the first lists of shards had `text` for `reason`."""
        return cls(record["key"], record["kind"], record.get("reason", record.get("text", "")))


@dataclass
class Source(ABC):
    """A sequence of samples that can be read by unit and, where `can_seek`, by position.

    `class_names` may be empty; `description` is JSON that says what the source was made of, with a `fingerprint` that
    changes when names or sizes do; `problems` are samples left out before anything was decoded.
    """

    class_names: list[str]
    description: dict[str, Any]
    units: list[Unit]
    problems: list[Rejected] = field(default_factory=list)
    can_seek: bool = True

    def __len__(self) -> int:
        """The number of samples."""
        return self.units[-1].first + self.units[-1].count if self.units else 0

    @abstractmethod
    def read_many(self, positions: Sequence[int] | np.ndarray) -> list[Sample]:
        """The samples at `positions`, in that order. Raises IndexError for a position that does not exist."""

    @abstractmethod
    def labels(self) -> np.ndarray:
        """(len,) int32, -1 for none, without reading an image."""

    @abstractmethod
    def keys(self) -> list[str]:
        """All keys, in order."""

    @abstractmethod
    def sizes(self) -> np.ndarray:
        """(len,) int64: bytes of each image file."""

    def read_unit(self, unit: Unit) -> tuple[list[Sample], list[Rejected]]:
        """The samples of one unit, and those of it that turned out unusable only now.

        They are `unit.count` together; of a source that can't seek, more where it holds what no count tells, such as a
        second image of a key.
        """
        return self.read_many(range(unit.first, unit.first + unit.count)), []

    def is_whole(self, samples: int) -> bool:
        """Whether so many rows and unusable samples are all there is."""
        expected = len(self) + len(self.problems)
        return samples == expected if self.can_seek else samples >= expected

    def sample(self, position: int) -> Sample:
        """The sample at `position`."""
        return self.read_many([position])[0]


def description_of(kind: str, paths: Sequence[str], num_samples: int, fingerprint: str) -> dict[str, Any]:
    """What every source says it is made of."""
    return {"kind": kind, "paths": list(paths), "num_samples": num_samples, "fingerprint": fingerprint}


def units_of(parts: Sequence[tuple[str, int]]) -> list[Unit]:
    """Units over parts (name, number of samples) that follow each other; no unit spans two parts."""
    units: list[Unit] = []
    begin = 0
    for name, count in parts:
        for first in range(0, count, UNIT_SIZE):
            n = min(UNIT_SIZE, count - first)
            units.append(Unit(len(units), begin + first, n, f"{name}[{first}:{first + n}]"))
        begin += count
    return units
