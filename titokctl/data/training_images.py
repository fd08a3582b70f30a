"""Training images by epoch and position, with random crops and flips.

A small data set is decoded once and kept in memory. The crop and flip of an image depend only on (seed, epoch,
position), whether it is kept or not.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from titokctl.data.decoding import empty_squares
from titokctl.data.image_problems import ImageProblems
from titokctl.data.images import crop_at, scaled_size, shorter_edge_to
from titokctl.data.order import uniform
from titokctl.data.sources.source import Sample, SeekableSource
from titokctl.data.workers import in_order
from titokctl.distributed.place import available_cores
from titokctl.errors import UserError

_CROP, _FLIP = 1, 2
_CHUNK = 16
_MAX_ASPECT = 4  # an image longer than this is not kept whole; only its windows are computed


@dataclass(frozen=True)
class Augmentation:
    """Random crops and flips.

    Args:
        crop: "center", or "random" along the longer edge.
        flip: mirror half of the images.
        seed: of crops and flips.
        exif: apply the EXIF orientation first.
    """

    crop: Literal["center", "random"] = "random"
    flip: bool = True
    seed: int = 0
    exif: bool = False

    def draw(self, epochs: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
        """Draw the windows, (n,) in [0, 1) or None for the middle, and which are mirrored, (n,) bool."""
        where = uniform(self.seed, _CROP, epochs, positions) if self.crop == "random" else None
        mirrored = uniform(self.seed, _FLIP, epochs, positions) < 0.5 if self.flip else np.zeros(len(positions), bool)
        return where, mirrored


RANDOM = Augmentation()


class TrainingImages:
    """Batches of (S, S, 3) uint8 images of a source.

    An image that can't be decoded is recorded in `problems` and replaced by the next good one.

    Args:
        source: the images.
        size: edge S in pixels; the shorter edge of an image becomes S.
        augmentation: the random crops and flips.
        keep_bytes: a data set that takes at most this much memory when decoded is decoded only once.
        workers: decoding threads; all cores by default.
        problems: of the images, with those that are known; new ones by default.
    """

    def __init__(
        self,
        source: SeekableSource,
        size: int,
        augmentation: Augmentation = RANDOM,
        keep_bytes: int = 1 << 30,
        workers: int | None = None,
        problems: ImageProblems | None = None,
    ) -> None:
        if not len(source):
            raise ValueError("a source without samples can't be trained on")
        self._source, self._size, self._augmentation = source, size, augmentation
        self._workers = workers or available_cores()
        self._kept: dict[int, np.ndarray] = {}
        self._free_bytes = keep_bytes if len(source) * size * size * 3 <= keep_bytes else 0
        self.problems = problems or ImageProblems(len(source), size, augmentation.exif)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._source)

    @property
    def kept_bytes(self) -> int:
        """Size in bytes of the decoded images that are kept in memory."""
        return sum(pixels.nbytes for pixels in self._kept.values())

    def batch(self, epochs: Sequence[int] | np.ndarray, positions: Sequence[int] | np.ndarray) -> torch.Tensor:
        """Return (B, S, S, 3) uint8: sample `positions[i]` with the crop and flip of epoch `epochs[i]`.

        Raises UserError when more images can't be decoded than `problems` accepts.
        """
        at = np.asarray(positions, np.int64)
        when = np.asarray(epochs, np.int64)
        where, mirrored = self._augmentation.draw(when, at)
        out = empty_squares(len(at), self._size)

        def fill(rows: range) -> None:
            samples = self._samples([int(at[i]) for i in rows])
            for i, sample in zip(rows, samples, strict=True):
                square = self._square(int(at[i]), sample, None if where is None else float(where[i]))
                out[i] = square[:, ::-1] if mirrored[i] else square

        chunks = [range(i, min(i + _CHUNK, len(at))) for i in range(0, len(at), _CHUNK)]
        workers = 1 if all(int(p) in self._kept for p in at) else self._workers
        for _ in in_order(fill, chunks, workers):
            pass
        return torch.from_numpy(out)

    def _samples(self, positions: list[int]) -> list[Sample | None]:
        """Read the files at those positions that are not kept decoded."""
        missing = [p for p in positions if p not in self._kept]
        read = dict(zip(missing, self._source.read_many(missing), strict=True))
        return [read.get(p) for p in positions]

    def _square(self, position: int, sample: Sample | None, u: float | None) -> np.ndarray:
        """Return the (S, S, 3) window at `u` of one image, or of the next one that can be decoded."""
        for _ in range(len(self)):
            pixels = self._kept.get(position)
            if pixels is None:
                pixels = self._decoded(position, sample or self._source.sample(position))
            if pixels is not None:
                return crop_at(pixels, self._size, u)
            position, sample = (position + 1) % len(self), None
        raise UserError("none of the images can be decoded", "open a few of them with another program")

    def _decoded(self, position: int, sample: Sample) -> np.ndarray | None:
        """Decode one image, and keep it scaled if there is room; None when it can't be decoded."""
        if self.problems.is_bad(position):
            return None
        pixels = self.problems.decoded(position, sample)
        if pixels is None:
            return None
        height, width = scaled_size(pixels.shape[0], pixels.shape[1], self._size)
        if max(height, width) > _MAX_ASPECT * self._size or not self._reserve(height * width * 3):
            return pixels
        self._kept[position] = shorter_edge_to(pixels, self._size)
        return self._kept[position]

    def _reserve(self, count: int) -> bool:
        with self._lock:
            enough = count <= self._free_bytes
            self._free_bytes -= count if enough else 0
        return enough
