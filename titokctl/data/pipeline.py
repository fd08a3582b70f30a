"""From units of a source to pixels, in order, with several workers."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.data.images import BadImage, squares
from titokctl.data.sources.source import Rejected, Sample, Source, Unit
from titokctl.data.training_images import TrainingImages
from titokctl.data.workers import in_order

__all__ = ["DecodedUnit", "Rejected", "TrainingImages", "decode_unit", "decode_units"]

_CHUNK = 16  # samples of one task of a worker


@dataclass(frozen=True)
class DecodedUnit:
    """Samples ready for a model; those that could not be decoded are in `rejected` instead.

    pixels (n, S, S, 3) uint8; labels (n,) int32; keys n strings; positions (n,) int64 in the source; further: other
    squares of the same images, an array (n, S', S', 3) uint8 for each further preprocessing that was asked for.
    """

    pixels: np.ndarray
    labels: np.ndarray
    keys: list[str]
    positions: np.ndarray
    rejected: list[Rejected]
    further: tuple[np.ndarray, ...] = ()


def decode_unit(
    source: Source,
    unit: Unit,
    preprocessing: PreprocessingConfig,
    workers: int = 1,
    further: Sequence[PreprocessingConfig] = (),
) -> DecodedUnit:
    """One unit of a source as pixels, with `workers` threads."""
    return next(decode_units(source, [unit], preprocessing, workers, further))


def decode_units(
    source: Source,
    units: Iterable[Unit],
    preprocessing: PreprocessingConfig,
    workers: int = 1,
    further: Sequence[PreprocessingConfig] = (),
) -> Iterator[DecodedUnit]:
    """Units of a source as pixels, in their order; the next one is decoded while the caller uses one.

    `further` are other squares that are wanted of the same images; each image is decoded once.
    """
    configs = [preprocessing, *further]

    def make(task: tuple[Unit, int, int]) -> DecodedUnit:
        _, first, count = task
        return _decode(source.read_many(range(first, first + count)), first, configs)

    def tasks() -> Iterator[tuple[Unit, int, int]]:
        for unit in units:
            for first in range(unit.first, unit.first + unit.count, _CHUNK):
                yield unit, first, min(_CHUNK, unit.first + unit.count - first)

    if not source.can_seek:
        yield from _decode_whole(source, units, configs, workers)
        return
    parts: list[DecodedUnit] = []
    for (unit, first, count), part in in_order(make, tasks(), workers):
        parts.append(part)
        if first + count == unit.first + unit.count:
            yield _join(parts)
            parts = []


def _decode_whole(
    source: Source, units: Iterable[Unit], configs: Sequence[PreprocessingConfig], workers: int
) -> Iterator[DecodedUnit]:
    """As `decode_units` where a unit can only be read as a whole."""
    for unit in units:
        samples, rejected = source.read_unit(unit)

        def make(at: int, samples: list[Sample] = samples, first: int = unit.first) -> DecodedUnit:
            return _decode(samples[at : at + _CHUNK], first + at, configs)

        parts = [part for _, part in in_order(make, range(0, len(samples), _CHUNK), workers)]
        decoded = _join([_decode([], unit.first, configs), *parts])
        yield replace(decoded, rejected=rejected + decoded.rejected)


def _decode(samples: Sequence[Sample], first: int, configs: Sequence[PreprocessingConfig]) -> DecodedUnit:
    arrays = [np.empty((len(samples), c.size, c.size, 3), np.uint8) for c in configs]
    kept: list[int] = []
    rejected: list[Rejected] = []
    for i, sample in enumerate(samples):
        try:
            for array, square in zip(arrays, squares(sample.data, configs), strict=True):
                array[len(kept)] = square
            kept.append(i)
        except BadImage as error:
            rejected.append(Rejected(sample.key, error.kind, error.text))
    labels = np.array([samples[i].label for i in kept], np.int32)
    positions = first + np.array(kept, np.int64)
    pixels, *further = (array[: len(kept)] for array in arrays)
    return DecodedUnit(pixels, labels, [samples[i].key for i in kept], positions, rejected, tuple(further))


def _join(parts: list[DecodedUnit]) -> DecodedUnit:
    return DecodedUnit(
        np.concatenate([p.pixels for p in parts]),
        np.concatenate([p.labels for p in parts]),
        [key for p in parts for key in p.keys],
        np.concatenate([p.positions for p in parts]),
        [r for p in parts for r in p.rejected],
        tuple(np.concatenate(arrays) for arrays in zip(*(p.further for p in parts), strict=True)),
    )
