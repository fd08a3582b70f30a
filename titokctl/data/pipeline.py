"""Decoding of units to pixels, in order, with several workers.

The first images of a job, which are all of a small one, are decoded by threads, the rest by processes: threads cost
nothing to start, but wait for each other at the interpreter's lock.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.data.decoding import CHUNK, Bad, DecodeProcesses, decode_files, empty_squares
from titokctl.data.sources.source import Counts, Rejected, Sample, Source, Unit
from titokctl.data.workers import in_order

_BY_THREADS = 1024  # images of a job that threads decode


@dataclass(frozen=True)
class DecodedUnit:
    """The decoded samples of a unit; those that can't be decoded are in `rejected` instead.

    Args:
        pixels: (n, S, S, 3) uint8, a view of planes.
        labels: (n,) int32.
        keys: n strings.
        positions: (n,) int64, in the source.
        rejected: samples without pixels.
        counts: of members that are not images, if the source as a whole does not know them.
        further: squares of the same images, (n, S', S', 3) uint8, one array per further preprocessing.
    """

    pixels: np.ndarray
    labels: np.ndarray
    keys: list[str]
    positions: np.ndarray
    rejected: list[Rejected]
    further: tuple[np.ndarray, ...] = ()
    counts: Counts = field(default_factory=Counts)


class Decoder:
    """Decodes units of a source; a context manager, since it may start processes.

    Args:
        source: the images.
        configs: the preprocessing of `pixels`, then those of `further`; each image is decoded once.
        workers: how many images are decoded at once; 1 for the caller's thread.
        by_threads: number of images after which processes replace threads.
        is_careful: decode one file at a time in a process of its own. A file that kills the process is rejected.
    """

    def __init__(
        self,
        source: Source,
        configs: Sequence[PreprocessingConfig],
        workers: int = 1,
        by_threads: int = _BY_THREADS,
        is_careful: bool = False,
    ) -> None:
        self._source, self._configs, self._workers, self._by_threads = source, list(configs), workers, by_threads
        self._is_careful = is_careful
        self._processes = DecodeProcesses(self._configs)
        self._begun = 0

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(self, *_: object) -> None:
        self._processes.close()

    @property
    def process_ids(self) -> list[int]:
        """Ids of the decoding processes that were started."""
        return self._processes.ids

    def unit(self, unit: Unit) -> DecodedUnit:
        """Decode one unit. Raises UserError when it can't be read, or a decoding process dies."""
        opened = self._source.open_unit(unit)
        count = opened.count
        arrays = [empty_squares(count, config.size) for config in self._configs]

        def make(at: int) -> tuple[list[Sample], list[Bad]]:
            samples = opened.read(at, min(at + CHUNK, count))
            bad = self._decode([s.data for s in samples], [array[at : at + CHUNK] for array in arrays])
            return [Sample(s.key, s.label, b"") for s in samples], bad

        keys: list[str] = []
        labels: list[int] = []
        positions: list[int] = []
        rejected = list(opened.rejected)
        for at, (samples, bad) in in_order(make, range(0, count, CHUNK), self._workers):
            rejected += [Rejected(samples[i].key, kind, text) for i, kind, text in bad]
            kept = sorted(set(range(len(samples))) - {i for i, _, _ in bad})
            if len(keys) != at:  # close the gap of a bad file
                for array in arrays:
                    array[len(keys) : len(keys) + len(kept)] = array[at : at + len(kept)].copy()
            keys += [samples[i].key for i in kept]
            labels += [samples[i].label for i in kept]
            positions += [unit.first + at + i for i in kept]
        self._begun += count
        pixels, *further = (array[: len(keys)] for array in arrays)
        where = np.array(positions, np.int64)
        return DecodedUnit(pixels, np.array(labels, np.int32), keys, where, rejected, tuple(further), opened.counts)

    def _decode(self, files: list[bytes], into: list[np.ndarray]) -> list[Bad]:
        if self._is_careful:
            return self._processes.decode_each(files, into)
        if self._workers > 1 and self._begun >= self._by_threads:
            return self._processes.decode(files, into)
        return decode_files(files, self._configs, into)


def decode_units(
    source: Source, units: Iterable[Unit], preprocessing: PreprocessingConfig, workers: int = 1
) -> Iterator[DecodedUnit]:
    """Yield decoded units, in order; the next one is decoded while the caller uses one."""
    with Decoder(source, [preprocessing], workers) as decoder:
        for _, decoded in in_order(decoder.unit, units, min(workers, 2), ahead=1):
            yield decoded
