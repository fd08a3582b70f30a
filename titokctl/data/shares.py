"""The share of a source that one process of a group reads, in batches that are the same in any group."""

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import asdict
from typing import NamedTuple

import numpy as np

from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.context import Context
from titokctl.data.pipeline import decode_units
from titokctl.data.sources.source import UNIT_SIZE, Rejected, SeekableSource, Source, Unit
from titokctl.distributed.group import Group
from titokctl.distributed.place import available_cores


def share_of(source: Source, batch_size: int, group: Group, chosen: Sequence[int] | None = None) -> list[Unit]:
    """Return the units that this process reads; those of all processes together are the whole source.

    A share consists of whole batches, which hold the same images in any group. Where only shards can be read, it is
    every so many-th shard.

    Args:
        batch_size: divides 1,024.
        chosen: positions of the images that are wanted, ascending; None for all. Their units hold one image each.

    Raises UserError when `chosen` names positions of a source that can't be read by position.
    """
    if chosen is None and not isinstance(source, SeekableSource):
        return source.units[group.rank :: group.world_size]
    count = len(source) if chosen is None else len(chosen)
    batches = -(-count // batch_size)
    begin, end = (min(batches * r // group.world_size * batch_size, count) for r in (group.rank, group.rank + 1))
    if chosen is not None:
        source.by_position()
        return [Unit(i, chosen[i], 1, str(chosen[i])) for i in range(begin, end)]
    firsts = range(begin, end, UNIT_SIZE)
    return [Unit(i, first, min(UNIT_SIZE, end - first), str(first)) for i, first in enumerate(firsts)]


class ImageBatch(NamedTuple):
    """Readable images: positions in the source (n,) int64, pixels (n, S, S, 3) uint8, labels (n,) int32, n keys."""

    positions: np.ndarray
    pixels: np.ndarray
    labels: np.ndarray
    keys: list[str]


class ImagesInBatches:
    """The readable images of some units, `batch_size` at a time; only the last batch may be smaller.

    Attributes:
        rejected: the images that gave no pixels so far.
    """

    def __init__(
        self, source: Source, units: Sequence[Unit], preprocessing: PreprocessingConfig, batch_size: int
    ) -> None:
        self._source, self._units, self._preprocessing = source, units, preprocessing
        self._batch_size = batch_size
        self.rejected: list[Rejected] = []

    def __iter__(self) -> Generator[ImageBatch, None, None]:
        left: ImageBatch | None = None
        decoded = decode_units(self._source, self._units, self._preprocessing, available_cores())
        with closing(decoded):  # type: ignore[type-var]  # a generator
            for unit in decoded:
                self.rejected += unit.rejected
                found = ImageBatch(unit.positions, unit.pixels, unit.labels, unit.keys)
                found = found if left is None else _joined(left, found)
                whole = len(found.keys) - len(found.keys) % self._batch_size
                for first in range(0, whole, self._batch_size):
                    yield _rows(found, slice(first, first + self._batch_size))
                left = _rows(found, slice(whole, None))
        if left is not None and left.keys:
            yield left


def _joined(a: ImageBatch, b: ImageBatch) -> ImageBatch:
    positions, pixels, labels = (np.concatenate(pair) for pair in zip(a[:3], b[:3], strict=True))
    return ImageBatch(positions, pixels, labels, a.keys + b.keys)


def _rows(batch: ImageBatch, rows: slice) -> ImageBatch:
    return ImageBatch(batch.positions[rows], batch.pixels[rows], batch.labels[rows], batch.keys[rows])


def all_rejected(mine: Sequence[Rejected], context: Context, kept: str) -> list[Rejected]:
    """Return the rejected images of all processes; leave together with them when one got a signal.

    Args:
        kept: one sentence on what a stopped job leaves.

    Raises Stopped after a signal.
    """
    found = context.group.from_all({"stop": context.stop.exit_code, "rejected": [asdict(one) for one in mine]})
    if code := max(each["stop"] for each in found):
        context.stop.adopt(code)
        context.stop.check(kept)
    return [Rejected(**one) for each in found for one in each["rejected"]]
