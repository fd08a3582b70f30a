"""Samples of a unit as pixels; what the worker of every kind does, so nothing heavy is imported here."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.data.images import BadImage, squares
from titokctl.data.sources.source import Rejected, Sample

CHUNK = 16  # samples of one task of a worker


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


def decode_samples(
    samples: Sequence[Sample],
    first: int,
    configs: Sequence[PreprocessingConfig],
    into: Sequence[np.ndarray] | None = None,
) -> DecodedUnit:
    """The samples from position `first` on as squares of every config, in the arrays `into` where they are given."""
    arrays = into or [np.empty((len(samples), c.size, c.size, 3), np.uint8) for c in configs]
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


def join(parts: Sequence[DecodedUnit]) -> DecodedUnit:
    """Parts that follow each other as one, in memory of its own."""
    return DecodedUnit(
        np.concatenate([p.pixels for p in parts]),
        np.concatenate([p.labels for p in parts]),
        [key for p in parts for key in p.keys],
        np.concatenate([p.positions for p in parts]),
        [r for p in parts for r in p.rejected],
        tuple(np.concatenate(arrays) for arrays in zip(*(p.further for p in parts), strict=True)),
    )
