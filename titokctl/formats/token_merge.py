"""From parts to one token cache, in the order of the source and in bounded memory."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from titokctl.errors import UserError
from titokctl.formats.atomic import atomic_path
from titokctl.formats.token_cache_writer import TokenCacheWriter
from titokctl.formats.token_header import CacheHeader
from titokctl.formats.token_parts import PartsFolder, PartSummary, TokenPart

T = TypeVar("T")
_EXAMPLES = 5
_ROWS_AT_ONCE = 16_384


@dataclass
class Tally:
    """What the parts add up to; small enough to keep for any number of parts."""

    units: int = 0
    rows: int = 0
    rejected: int = 0
    key_bytes: int = 1
    by_kind: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)

    def add(self, part: PartSummary) -> None:
        """Count one part."""
        self.units += 1
        self.rows += part.rows
        self.key_bytes = max(self.key_bytes, part.key_bytes)
        self.reject(part.rejected)

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


def merge(
    folder: PartsFolder,
    header: CacheHeader,
    num_units: int,
    tally: Tally,
    advance: Callable[[int], None],
    compress: bool = False,
) -> None:
    """Write the output of `folder` from all its parts.

    Args:
        folder: holds a part for each of `num_units` units.
        header: of the output; the number of rejected images is filled in.
        tally: of exactly these parts.
        advance: called with the number of rows written since.
        compress: as `TokenCacheWriter`.

    Raises UserError when a part is missing or damaged; the output is then untouched.
    """
    header = replace(header, num_rejected=tally.rejected)
    size = {"num_rows": tally.rows, "key_bytes": tally.key_bytes}
    with TokenCacheWriter(folder.output, header, **size, compress=compress) as writer:
        for parts in _blocks(all_parts(folder, num_units)):
            views = {name: np.concatenate([part.views[name] for part in parts]) for name in header.views}
            ids, labels, keys = (
                np.concatenate([getattr(p, name) for p in parts]) for name in ("ids", "labels", "keys")
            )
            writer.append(ids, labels, keys, views)
            advance(len(ids))


def _blocks(parts: Iterable[TokenPart]) -> Iterator[list[TokenPart]]:
    """Several parts at once: HDF5 takes its time with every write, however small."""
    block: list[TokenPart] = []
    for part in parts:
        block.append(part)
        if sum(map(len, block)) >= _ROWS_AT_ONCE:
            yield block
            block = []
    if block:
        yield block


def all_parts(folder: PartsFolder, num_units: int) -> Iterator[TokenPart]:
    """Every part in the order of the source, checked.

    Raises UserError when one is missing, or damaged; a damaged one is deleted, so that it is made again.
    """
    return _of_all(folder, num_units, folder.read)


def summaries(folder: PartsFolder, num_units: int) -> Iterator[PartSummary]:
    """What every part says of itself, in the order of the source. Raises UserError as `all_parts` does."""
    return _of_all(folder, num_units, folder.summary)


def _of_all(folder: PartsFolder, num_units: int, look: Callable[[int], T | None]) -> Iterator[T]:
    for unit in range(num_units):
        try:
            found = look(unit)
        except UserError as error:
            folder.discard(unit)
            raise UserError(f"{error.message}; it was deleted", "run the same command again to make it anew") from error
        if found is None:
            raise UserError(f"the part of unit {unit} is missing from {folder.path}", "run the same command again")
        yield found


def write_rejected(target: Path, rejected: Iterable[Mapping[str, str]]) -> None:
    """One JSON line a rejected sample. Without any there is no file; one of an earlier run is removed."""
    with atomic_path(target) as temporary:
        count = 0
        with temporary.open("w", encoding="utf-8") as out:
            for one in rejected:
                out.write(json.dumps(one, ensure_ascii=False) + "\n")
                count += 1
    if not count:
        target.unlink(missing_ok=True)
