"""From units of a source to pixels, in order, with several workers."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.data.decoding import CHUNK, DecodedUnit, decode_samples, join
from titokctl.data.sources.source import Rejected, Sample, Source, Unit
from titokctl.data.training_images import TrainingImages
from titokctl.data.workers import in_order

__all__ = ["DecodedUnit", "Rejected", "TrainingImages", "decode_unit", "decode_units"]


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
        return decode_samples(source.read_many(range(first, first + count)), first, configs)

    def tasks() -> Iterator[tuple[Unit, int, int]]:
        for unit in units:
            for first in range(unit.first, unit.first + unit.count, CHUNK):
                yield unit, first, min(CHUNK, unit.first + unit.count - first)

    if not source.can_seek:
        yield from _decode_whole(source, units, configs, workers)
        return
    parts: list[DecodedUnit] = []
    for (unit, first, count), part in in_order(make, tasks(), workers):
        parts.append(part)
        if first + count == unit.first + unit.count:
            yield join(parts)
            parts = []


def _decode_whole(
    source: Source, units: Iterable[Unit], configs: Sequence[PreprocessingConfig], workers: int
) -> Iterator[DecodedUnit]:
    """As `decode_units` where a unit can only be read as a whole."""
    for unit in units:
        samples, rejected = source.read_unit(unit)

        def make(at: int, samples: list[Sample] = samples, first: int = unit.first) -> DecodedUnit:
            return decode_samples(samples[at : at + CHUNK], first + at, configs)

        parts = [part for _, part in in_order(make, range(0, len(samples), CHUNK), workers)]
        decoded = join([decode_samples([], unit.first, configs), *parts])
        yield replace(decoded, rejected=rejected + decoded.rejected)
