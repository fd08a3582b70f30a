"""Bytes that are produced in order, as a binary file: what compressed files and files on a server have in common."""

from abc import ABC, abstractmethod
from typing import Self

_PIECE = 1 << 20  # most bytes that are asked for at once


class ForwardStream(ABC):
    """A binary file that is read from front to end; subclasses produce its bytes."""

    _position = 0

    def read(self, count: int) -> bytes:
        """Return the next `count` bytes; fewer only at the end."""
        parts = []
        while count > 0 and (part := self._next(count)):
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def seek(self, position: int) -> int:
        """Skip to `position`, or to the end if that is before it; return where the stream is then.

        Raises ValueError for a position before the current one, unless the stream can be started again.
        """
        if position < self._position:
            self._rewind(position)
        while self._position < position and self._next(position - self._position):
            pass
        return self._position

    @abstractmethod
    def close(self) -> None:
        """Close what the bytes are read from."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def _some(self, count: int) -> bytes:
        """Return 1 to `count` bytes at the current position, or none at the end."""

    def _rewind(self, position: int) -> None:
        """Start again at byte 0, to reach `position`."""
        raise ValueError(f"a stream at byte {self._position} can't go back to {position}")

    def _next(self, count: int) -> bytes:
        data = self._some(min(count, _PIECE))
        self._position += len(data)
        return data
