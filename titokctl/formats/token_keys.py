"""Keys of the rows of a token cache: texts of different lengths in one array of bytes."""

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np

LONGEST_KEY = 1 << 16


class Keys(Sequence[bytes]):
    """N keys as UTF-8 bytes; one long key costs its own length, and no more.

    Args:
        data: (B,) uint8, all keys one after the other.
        ends: (N,) int64, the position in `data` behind each key.
    """

    def __init__(self, data: np.ndarray, ends: np.ndarray) -> None:
        self.data, self.ends = data, ends

    @classmethod
    def of(cls, keys: "Sequence[str | bytes] | np.ndarray | Keys") -> "Keys":
        """Return keys of any form as `Keys`: text, bytes, or an array of NumPy's type S.

        Raises ValueError for a key that is empty, too long, or has a zero byte.
        """
        if isinstance(keys, Keys):
            found = keys
        elif isinstance(keys, np.ndarray) and keys.dtype.kind == "S":
            lengths = np.char.str_len(keys).astype(np.int64)
            table = np.ascontiguousarray(keys).view(np.uint8).reshape(len(keys), keys.dtype.itemsize)
            found = cls(table[np.arange(table.shape[1]) < lengths[:, None]], np.cumsum(lengths))
        else:
            encoded = [key.encode() if isinstance(key, str) else bytes(key) for key in keys]
            data = np.frombuffer(b"".join(encoded), np.uint8)
            found = cls(data, np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded))))
        found.check()
        return found

    @classmethod
    def joined(cls, parts: "Sequence[Keys]") -> "Keys":
        """Return the keys of all parts in order."""
        starts = np.cumsum([0, *(len(part.data) for part in parts)])
        ends = [part.ends + start for part, start in zip(parts, starts, strict=False)]
        return cls(np.concatenate([part.data for part in parts]), np.concatenate(ends))

    def check(self) -> None:
        """Raise ValueError for a key that is empty, too long, or has a zero byte, and for ends that don't fit."""
        lengths = self.lengths
        if len(self.ends) and (int(self.ends[-1]) != len(self.data) or int(lengths.min()) < 1):
            raise ValueError("a key is empty, or the ends of the keys don't fit their bytes")
        if len(self.ends) and int(lengths.max()) >= LONGEST_KEY:
            raise ValueError(f"a key has {int(lengths.max()):,} bytes, expected 1 to {LONGEST_KEY - 1:,}")
        if not self.data.all():
            raise ValueError("a key has a zero byte")

    @property
    def lengths(self) -> np.ndarray:
        """Bytes of each key, (N,) int64."""
        return np.diff(self.ends, prepend=0)

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> bytes: ...

    @overload
    def __getitem__(self, index: slice) -> "Keys": ...

    def __getitem__(self, index: int | slice) -> "bytes | Keys":
        if isinstance(index, slice):
            first, last, step = index.indices(len(self))
            if step != 1:
                raise ValueError(f"expected a slice of step 1, got {step}")
            begin = int(self.ends[first - 1]) if first else 0
            end = int(self.ends[last - 1]) if last > first else begin
            return Keys(self.data[begin:end], self.ends[first:last] - begin)
        row = index + len(self) if index < 0 else index
        if not 0 <= row < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return self.data[int(self.ends[row - 1]) if row else 0 : int(self.ends[row])].tobytes()

    def __iter__(self) -> Iterator[bytes]:
        data, first = self.data.tobytes(), 0
        for end in self.ends.tolist():
            yield data[first:end]
            first = end

    def tolist(self) -> list[bytes]:
        """Return the keys as a list."""
        return list(self)

    def first_difference(self, other: "Keys") -> int | None:
        """Return the first row whose keys differ; None if all are equal. Both have the same number of rows."""
        rows = [int(found[0]) for found in [np.flatnonzero(self.ends != other.ends)] if len(found)]
        common = min(len(self.data), len(other.data))
        different = np.flatnonzero(self.data[:common] != other.data[:common])
        if len(different):
            rows.append(int(np.searchsorted(self.ends, different[0], side="right")))
        return min(rows, default=None)
