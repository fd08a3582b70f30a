"""The account of a token cache: rows, rejected images and files passed over, of one part and of all parts together."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from titokctl.formats.atomic import atomic_path

_EXAMPLES = 5


@dataclass(frozen=True)
class PartSummary:
    """The contents of a part's header: rows, bytes of the longest key, and samples without a row. Not checked."""

    rows: int
    key_bytes: int
    name: str
    rejected: list[dict[str, str]]
    passed_over: dict[str, int] = field(default_factory=dict)
    label_files: int = 0


@dataclass
class Tally:
    """The totals of all parts; small for any number of parts."""

    units: int = 0
    rows: int = 0
    rejected: int = 0
    key_bytes: int = 0
    by_kind: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)
    passed_over: dict[str, int] = field(default_factory=dict)
    label_files: int = 0

    def add(self, part: PartSummary) -> None:
        """Count one part."""
        self.units += 1
        self.rows += part.rows
        self.key_bytes += part.rows * part.key_bytes
        self.reject(part.rejected)
        self.pass_over(part.passed_over, part.label_files)

    def pass_over(self, passed_over: Mapping[str, int], label_files: int) -> None:
        """Count files or members that are not images."""
        for kind, count in passed_over.items():
            self.passed_over[kind] = self.passed_over.get(kind, 0) + count
        self.label_files += label_files

    def reject(self, rejected: Iterable[Mapping[str, str]]) -> None:
        """Count samples without a row."""
        for one in rejected:
            self.rejected += 1
            self.by_kind[one["kind"]] = self.by_kind.get(one["kind"], 0) + 1
            if len(self.examples) < _EXAMPLES:
                self.examples.append(f"{one['key']} ({one['kind']}: {one['reason']})")

    @property
    def samples(self) -> int:
        """Rows and rejected together: the samples of the source."""
        return self.rows + self.rejected


def rejected_lines(rejected: Iterable[Mapping[str, str]]) -> bytes:
    """Return one line of JSON per rejected sample."""
    return "".join(map(_line, rejected)).encode()


def write_rejected(target: Path, rejected: Iterable[Mapping[str, str]]) -> None:
    """Write one JSON line per rejected sample. Without any, no file remains, not even that of an earlier run."""
    with atomic_path(target) as temporary:
        count = 0
        with temporary.open("w", encoding="utf-8") as out:
            for one in rejected:
                out.write(_line(one))
                count += 1
    if not count:
        target.unlink(missing_ok=True)


def _line(rejected: Mapping[str, str]) -> str:
    return json.dumps(rejected, ensure_ascii=False) + "\n"
