"""What training met in its images: files that give no picture, and pictures smaller than what is cut from them."""

import threading

import numpy as np

from titokctl.data.images import BadImage, decode
from titokctl.data.sources.source import Rejected, Sample
from titokctl.errors import UserError

_MAX_REJECTED = 0.01
_NAMED = 5


class ImageProblems:
    """A ledger by position, safe to be written by several threads.

    Args:
        count: images of the source.
        size: edge of the crop in pixels.
    """

    def __init__(self, count: int, size: int) -> None:
        self._count, self._size = count, size
        self._bad: dict[int, Rejected] = {}
        self._small: set[int] = set()
        self._first_small = ""
        self._lock = threading.Lock()

    def reject(self, position: int, rejected: Rejected) -> None:
        """Note an image that can't be used. Raises UserError when more than 1 % of all can't."""
        with self._lock:
            self._bad[position] = rejected
            count = len(self._bad)
        if count > max(1, _MAX_REJECTED * self._count):
            text = f"{count:,} of {self._count:,} images can't be decoded: {self._named()}"
            raise UserError(text, "remove or mend them")

    def is_bad(self, position: int) -> bool:
        """Whether it was rejected before."""
        return position in self._bad

    def decoded(self, position: int, sample: Sample) -> np.ndarray | None:
        """An image as (H, W, 3) uint8; None for one that can't be decoded. Both are noted as they deserve.

        Raises UserError when more than 1 % of all can't.
        """
        try:
            pixels = decode(sample.data)
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
        """How many images are smaller than the crop."""
        return len(self._small)

    def remarks(self) -> list[str]:
        """Both in words, for the user."""
        found = []
        if self._bad:
            found.append(f"{len(self._bad):,} images can't be decoded, others stood in for them: {self._named()}")
        if self._small:
            found.append(
                f"{len(self._small):,} images are smaller than {self._size} px and were scaled up "
                f"(the first: {self._first_small})"
            )
        return found

    def _named(self) -> str:
        return "; ".join(f"{r.key} ({r.kind}: {r.reason})" for r in self.rejected[:_NAMED])
