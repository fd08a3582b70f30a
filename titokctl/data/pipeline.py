"""From units of a source to pixels, in order, with several workers."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.data.images import BadImage, preprocess
from titokctl.data.sources.source import Rejected, Sample, Source, Unit
from titokctl.data.training_images import TrainingImages
from titokctl.data.workers import in_order

__all__ = ["DecodedUnit", "Rejected", "TrainingImages", "decode_unit", "decode_units"]

_CHUNK = 16  # samples of one task of a worker


@dataclass(frozen=True)
class DecodedUnit:
    """Samples ready for a model; those that could not be decoded are in `rejected` instead.

    pixels (n, S, S, 3) uint8; labels (n,) int32; keys n strings; positions (n,) int64 in the source.
    """

    pixels: np.ndarray
    labels: np.ndarray
    keys: list[str]
    positions: np.ndarray
    rejected: list[Rejected]


def decode_unit(source: Source, unit: Unit, preprocessing: PreprocessingConfig, workers: int = 1) -> DecodedUnit:
    """One unit of a source as pixels, with `workers` threads."""
    return next(decode_units(source, [unit], preprocessing, workers))


def decode_units(
    source: Source, units: Iterable[Unit], preprocessing: PreprocessingConfig, workers: int = 1
) -> Iterator[DecodedUnit]:
    """Units of a source as pixels, in their order; the next one is decoded while the caller uses one."""

    def make(task: tuple[Unit, int, int]) -> DecodedUnit:
        _, first, count = task
        return _decode(source.read_many(range(first, first + count)), first, preprocessing)

    def tasks() -> Iterator[tuple[Unit, int, int]]:
        for unit in units:
            for first in range(unit.first, unit.first + unit.count, _CHUNK):
                yield unit, first, min(_CHUNK, unit.first + unit.count - first)

    if not source.can_seek:
        for unit in units:
            yield _decode(list(source.read(unit)), unit.first, preprocessing)
        return
    parts: list[DecodedUnit] = []
    for (unit, first, count), part in in_order(make, tasks(), workers):
        parts.append(part)
        if first + count == unit.first + unit.count:
            yield _join(parts)
            parts = []


def _decode(samples: Sequence[Sample], first: int, preprocessing: PreprocessingConfig) -> DecodedUnit:
    size = preprocessing.size
    pixels = np.empty((len(samples), size, size, 3), np.uint8)
    kept: list[int] = []
    rejected: list[Rejected] = []
    for i, sample in enumerate(samples):
        try:
            pixels[len(kept)] = preprocess(sample.data, preprocessing)
            kept.append(i)
        except BadImage as error:
            rejected.append(Rejected(sample.key, error.kind, error.text))
    labels = np.array([samples[i].label for i in kept], np.int32)
    positions = first + np.array(kept, np.int64)
    return DecodedUnit(pixels[: len(kept)], labels, [samples[i].key for i in kept], positions, rejected)


def _join(parts: list[DecodedUnit]) -> DecodedUnit:
    return DecodedUnit(
        np.concatenate([p.pixels for p in parts]),
        np.concatenate([p.labels for p in parts]),
        [key for p in parts for key in p.keys],
        np.concatenate([p.positions for p in parts]),
        [r for p in parts for r in p.rejected],
    )
