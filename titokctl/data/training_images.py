"""Images as training wants them: by epoch and position, cropped and flipped at random, again and again.

A small data set is decoded once and kept; what an image looks like in an epoch depends on (seed, epoch, position)
alone, kept or not.
"""

import threading
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from titokctl.data.decoding import empty_squares
from titokctl.data.image_problems import ImageProblems
from titokctl.data.images import crop_at, scaled_size, shorter_edge_to
from titokctl.data.order import uniform
from titokctl.data.sources.source import Sample, SeekableSource
from titokctl.data.workers import available_cores, in_order
from titokctl.errors import UserError

_CROP, _FLIP = 1, 2
_CHUNK = 16
_MAX_ASPECT = 4  # an image longer than this is not kept whole: only windows of it are ever computed


class TrainingImages:
    """Batches of (S, S, 3) uint8 images of a source.

    An image that can't be decoded is noted in `problems`, and the next good one stands in for it.

    Args:
        source: the images.
        size: edge S in pixels; the shorter edge of an image becomes S.
        crop: "center", or "random" along the longer edge.
        flip: mirror half of the images.
        seed: of crops and flips.
        keep_bytes: data sets that fit into this much memory decoded are decoded only once.
        workers: decoding threads; all cores by default.
    """

    def __init__(
        self,
        source: SeekableSource,
        size: int,
        crop: Literal["center", "random"] = "random",
        flip: bool = True,
        seed: int = 0,
        keep_bytes: int = 1 << 30,
        workers: int | None = None,
    ) -> None:
        if not len(source):
            raise ValueError("a source without samples can't be trained on")
        self._source, self._size, self._seed = source, size, seed
        self._crop, self._flip = crop, flip
        self._workers = workers or available_cores()
        self._kept: dict[int, np.ndarray] = {}
        self._free_bytes = keep_bytes if len(source) * size * size * 3 <= keep_bytes else 0
        self.problems = ImageProblems(len(source), size)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._source)

    def batch(self, epochs: Sequence[int] | np.ndarray, positions: Sequence[int] | np.ndarray) -> torch.Tensor:
        """(B, S, S, 3) uint8: sample `positions[i]` as epoch `epochs[i]` sees it.

        Raises:
            UserError: more than 1 % of the images can't be decoded.
        """
        at = np.asarray(positions, np.int64)
        when = np.asarray(epochs, np.int64)
        where, mirrored = chances(self._seed, self._crop, self._flip, when, at)
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
        """The files of those positions that are not kept decoded."""
        missing = [p for p in positions if p not in self._kept]
        read = dict(zip(missing, self._source.read_many(missing), strict=True))
        return [read.get(p) for p in positions]

    def _square(self, position: int, sample: Sample | None, u: float | None) -> np.ndarray:
        """The (S, S, 3) window at `u` of one image, or of the next one that can be decoded."""
        for _ in range(len(self)):
            pixels = self._kept.get(position)
            if pixels is None:
                pixels = self._decoded(position, sample or self._source.sample(position))
            if pixels is not None:
                return crop_at(pixels, self._size, u)
            position, sample = (position + 1) % len(self), None
        raise UserError("none of the images can be decoded", "open a few of them with another program")

    def _decoded(self, position: int, sample: Sample) -> np.ndarray | None:
        """One image, with its shorter edge at S and kept where there is room for it; None when it can't be decoded."""
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


def chances(
    seed: int, crop: Literal["center", "random"], flip: bool, epochs: np.ndarray, positions: np.ndarray
) -> tuple[np.ndarray | None, np.ndarray]:
    """Where the windows lie, (n,) in [0, 1) or None for the middle, and which are mirrored, (n,) bool."""
    where = uniform(seed, _CROP, epochs, positions) if crop == "random" else None
    mirrored = uniform(seed, _FLIP, epochs, positions) < 0.5 if flip else np.zeros(len(positions), bool)
    return where, mirrored
