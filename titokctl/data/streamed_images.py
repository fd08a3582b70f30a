"""Training images from a source that can only be read from front to end, such as shards on a server.

An epoch is all samples of all shards, in an order of the shards drawn from (seed, epoch). It is cut into one stretch
per process, so that every process downloads its own shards (one on a border goes to two processes), and each sample
comes exactly once per epoch, whatever the number of shards and processes. The samples of a stretch pass through
WebDataset's shuffle buffer. Crops and flips depend on (seed, epoch, sample) as elsewhere; the order also depends on the
number of processes. A step that doesn't follow the last one is reached by reading its shard from the beginning.
"""

import random
import threading
from collections.abc import Iterator
from functools import partial
from itertools import count, islice

import numpy as np
import torch
import webdataset

from titokctl.data.decoding import empty_squares
from titokctl.data.image_problems import ImageProblems
from titokctl.data.images import crop_at
from titokctl.data.order import epoch_order
from titokctl.data.sources.source import Sample, Source, Unit
from titokctl.data.training_images import RANDOM, Augmentation
from titokctl.data.workers import in_order
from titokctl.distributed.place import available_cores
from titokctl.errors import UserError

BUFFER = 1000  # samples: with ImageNet's files about 110 MB
_READERS = 2
_KEPT_BYTES = 512 << 20
_FAR = 64

_END = Sample("", -1, b"")  # marks the end of an epoch
Placed = tuple[int, int, Sample]  # epoch, position in the source, sample


class StreamedImages:
    """This process's share of every batch, (b, S, S, 3) uint8.

    An image that can't be decoded is recorded in `problems` and left out.

    Args:
        source: the images.
        size: edge S in pixels; the shorter edge of an image becomes S.
        share: images per step.
        rank, world_size: this process, and the number of processes.
        augmentation: the random crops and flips; its seed also decides the order.
        buffer: number of samples in the shuffle buffer.
        workers: decoding threads; all cores by default.

    Raises:
        UserError: there are fewer images than processes.
    """

    def __init__(
        self,
        source: Source,
        size: int,
        share: int,
        rank: int = 0,
        world_size: int = 1,
        augmentation: Augmentation = RANDOM,
        buffer: int = BUFFER,
        workers: int | None = None,
    ) -> None:
        if len(source) < world_size:
            raise UserError(f"{len(source):,} images are too few for {world_size:,} processes", "start fewer processes")
        self._source, self._size, self._share, self._buffer = source, size, share, buffer
        self._augmentation, self._seed = augmentation, augmentation.seed
        self._rank = rank
        self._begin, self._end = (len(source) * r // world_size for r in (rank, rank + 1))
        self._workers = workers or available_cores()
        self.problems = ImageProblems(len(source), size, augmentation.exif)
        self._lock = threading.Lock()
        self._samples: Iterator[Placed] = iter(())
        self._next = -_FAR
        self._idle_epochs = 0
        self._made: dict[int, torch.Tensor] = {}

    def batch(self, step: int) -> torch.Tensor:
        """Return the images of `step`. Recent batches are kept, so steps may be out of order a little.

        Raises:
            UserError: a shard can't be read, or more than 1 % of the images can't be decoded.
        """
        with self._lock:
            if step not in self._made:
                if not 0 <= step - self._next < _FAR:
                    self._go_to(step)
                while self._next <= step:
                    self._made[self._next] = self._take()
                    self._next += 1
            found = self._made[step]
            while len(self._made) > 1 and len(self._made) * found.nbytes > _KEPT_BYTES:
                del self._made[min(self._made)]
            return found

    def _go_to(self, step: int) -> None:
        """Start with the shard that holds the first sample of `step`."""
        self._made.clear()
        self._next = step
        epoch, skipped = divmod(step * self._share, self._end - self._begin)
        self._samples = self._endless(epoch, skipped)

    def _endless(self, epoch: int, skipped: int) -> Iterator[Placed]:
        """Yield epoch after epoch; the buffer is emptied in between, so that epochs don't mix."""
        for number in count(epoch):
            draws = random.Random(f"{self._seed}/{number}/{self._rank}/{skipped}")
            shuffled = webdataset.shuffle(self._buffer, initial=self._buffer, rng=draws)
            yield from shuffled(self._stretch(number, skipped))
            yield number, -1, _END
            skipped = 0

    def _stretch(self, epoch: int, skipped: int) -> Iterator[Placed]:
        """Yield this process's samples of an epoch, in the order of its shards."""
        parts = in_order(lambda part: self._source.read_unit(part[0]), self._parts(epoch, skipped), _READERS, 2)
        for (unit, begin, end), (samples, rejected) in parts:
            for i, bad in enumerate(rejected if begin == 0 else []):
                self.problems.reject(unit.first + unit.count - 1 - i, bad)
            # The list lacks unusable samples; both processes at a border cut it at the same position.
            first, last = (len(samples) * at // unit.count for at in (begin, end))
            for i, sample in enumerate(samples[first:last], first):
                yield epoch, unit.first + i, sample

    def _parts(self, epoch: int, skipped: int) -> Iterator[tuple[Unit, int, int]]:
        """Yield the shards of this process, each with its own stretch [begin, end) of it."""
        at = 0
        for number in epoch_order(self._seed, epoch, len(self._source.units)):
            unit = self._source.units[number]
            begin, end = max(self._begin - at, 0), min(self._end - at, unit.count)
            if begin < end and at + end > self._begin + skipped:
                yield unit, begin, end
            at += unit.count

    def _take(self) -> torch.Tensor:
        out = empty_squares(self._share, self._size)
        filled = 0
        while filled < self._share:
            placed = [p for p in islice(self._samples, self._share - filled) if self._is_good(p)]
            positions = np.array([p[1] for p in placed], np.int64)
            epochs = np.array([p[0] for p in placed], np.int64)
            where, mirrored = self._augmentation.draw(epochs, positions)
            squares = partial(self._square, placed, where, mirrored)
            for _, square in in_order(squares, range(len(placed)), self._workers):
                if square is not None:
                    out[filled] = square
                    filled += 1
                    self._idle_epochs = 0
        return torch.from_numpy(out)

    def _is_good(self, placed: Placed) -> bool:
        """Return True for a sample that can be decoded. Raises UserError after two epochs without any."""
        _, position, sample = placed
        if sample is not _END:
            return not self.problems.is_bad(position)
        self._idle_epochs += 1
        if self._idle_epochs > 2:
            named = "; ".join(self.problems.remarks()) or "nothing was read"
            raise UserError(f"no usable image in a whole epoch: {named}", "open a few of them with another program")
        return False

    def _square(
        self, placed: list[Placed], where: np.ndarray | None, mirrored: np.ndarray, i: int
    ) -> np.ndarray | None:
        """Return the (S, S, 3) window of one image; None when it can't be decoded."""
        _, position, sample = placed[i]
        pixels = self.problems.decoded(position, sample)
        if pixels is None:
            return None
        square = crop_at(pixels, self._size, None if where is None else float(where[i]))
        return square[:, ::-1] if mirrored[i] else square
