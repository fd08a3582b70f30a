"""The faulty images of a training run: files that can't be decoded, and pictures smaller than the crop."""

import threading
from collections.abc import Mapping

import numpy as np

from titokctl.data.images import BadImage, decode
from titokctl.data.sources.source import Rejected, Sample
from titokctl.errors import UserError
from titokctl.readable import counted

_MAX_REJECTED = 0.01
NOTHING_KNOWN: Mapping[int, Rejected] = {}
_NAMED = 5


class ImageProblems:
    """A record of faulty images by position; threads may write to it at once.

    Args:
        count: number of images in the source.
        size: edge of the crop in pixels.
        exif: apply the EXIF orientation when decoding.
        known: images that are known to be unusable and were reported, by position.
        max_rejected: the largest share of images that may turn out unusable; None for 1 %.
    """

    def __init__(
        self,
        count: int,
        size: int,
        exif: bool = False,
        known: Mapping[int, Rejected] = NOTHING_KNOWN,
        max_rejected: float | None = None,
    ) -> None:
        self._count, self._size, self._exif = count, size, exif
        self._known, self._bad = known, dict(known)
        self._most = max(1, len(known), (_MAX_REJECTED if max_rejected is None else max_rejected) * count)
        self._small: set[int] = set()
        self._first_small = ""
        self._lock = threading.Lock()

    def reject(self, position: int, rejected: Rejected) -> None:
        """Record an image that can't be used. Raises UserError when more than the accepted share can't."""
        with self._lock:
            self._bad[position] = rejected
            count = len(self._bad)
        if count > self._most:
            text = f"{count:,} of {self._count:,} images can't be decoded: {self._named()}"
            raise UserError(text, "repair or delete them, or leave them out: --max-rejected 0.05 accepts 5 %")

    def is_bad(self, position: int) -> bool:
        """Return True for an image that was rejected before."""
        return position in self._bad

    def decoded(self, position: int, sample: Sample) -> np.ndarray | None:
        """Decode an image to (H, W, 3) uint8 and record if it is small or, returning None, that it can't be decoded.

        Raises UserError when more than the accepted share of images can't be decoded.
        """
        try:
            pixels = decode(sample.data, exif=self._exif)
        except BadImage as error:
            self.reject(position, Rejected(sample.key, error.kind, error.text))
            return None
        height, width = pixels.shape[:2]
        if min(height, width) < self._size and position not in self._small:
            with self._lock:
                self._first_small = self._first_small or f"{sample.key}, {width} x {height}"
                self._small.add(position)
        return pixels

    @property
    def rejected(self) -> list[Rejected]:
        """The images that can't be used, by position."""
        return [self._bad[p] for p in sorted(self._bad)]

    @property
    def upscaled(self) -> int:
        """Number of images that are smaller than the crop."""
        return len(self._small)

    def remarks(self) -> list[str]:
        """Describe both kinds of problems for the user."""
        found = []
        if len(self._bad) > len(self._known):
            count = counted(len(self._bad), "images")
            found.append(f"{count} that can't be decoded, replaced by others: {self._named()}")
        if self._small:
            found.append(
                f"{counted(len(self._small), 'images')} smaller than {self._size} px, scaled up (the first: "
                f"{self._first_small})"
            )
        return found

    def _named(self) -> str:
        return "; ".join(f"{r.key} ({r.kind}: {r.reason})" for r in self.rejected[:_NAMED])
