"""An .npz of one large array, written in pieces in any order, with memory for one piece.

Specification: a ZIP archive with the single member `arr_0.npy`, stored without compression, its sizes in a ZIP64 extra
field, so that numpy.load(allow_pickle=False) and every ZIP reader open it; C order, little-endian. The array begins at
an offset that depends on its shape alone, so each piece goes straight to its position; headers and the checksum, which
is combined from those of the pieces, are written last.
"""

import io
import os
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

_NAME = b"arr_0.npy"
_VERSION = 45  # of the ZIP specification that has ZIP64
_DATE = (1 << 5) | 1  # 1 January 1980: equal samples are equal files
_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR64 = struct.Struct("<4sIQI")
_END = struct.Struct("<4s4H2IH")
_ALL_ONES_32 = 0xFFFFFFFF
_CRC_POLYNOMIAL = 0xEDB88320


class NpzArray:
    """The array of an .npz that is being written; an `ImageOutput`.

    Args:
        path: made when missing; rows that it holds already are kept.
        shape: of the whole array; pieces are runs of rows along the first axis.
        dtype: of its values.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype | type) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        self._path = path
        self._npy_header = _npy_header(shape, self.dtype)
        self._start = _LOCAL.size + len(_NAME) + len(_sizes64(0)) + len(self._npy_header)
        self._row_bytes = int(np.prod(shape[1:], dtype=np.int64)) * self.dtype.itemsize
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def write(self, first: int, rows: np.ndarray) -> int:
        """Write `rows` from row `first` on; safe from several threads. Returns the CRC-32 of their bytes.

        Raises ValueError when they do not fit into the array.
        """
        if rows.dtype != self.dtype or rows.shape[1:] != self.shape[1:] or not 0 <= first <= self.shape[0] - len(rows):
            raise ValueError(f"expected {self.dtype} rows of {self.shape}, not {rows.dtype} {rows.shape} at {first}")
        data = np.ascontiguousarray(rows).data.cast("B")
        crc, offset, done = zlib.crc32(data), self._start + first * self._row_bytes, 0
        while done < len(data):
            done += os.pwrite(self._descriptor, data[done:], offset + done)
        return crc

    def read(self, first: int, count: int) -> np.ndarray:
        """Return rows (count, *shape[1:]) that were written before."""
        data = os.pread(self._descriptor, count * self._row_bytes, self._start + first * self._row_bytes)
        return np.frombuffer(data, dtype=self.dtype).reshape(count, *self.shape[1:])

    def flush(self) -> None:
        """Wait until what was written is on the disk."""
        os.fsync(self._descriptor)

    def finish(self, pieces: Iterable[tuple[int, int]]) -> None:
        """Write the headers, after all rows.

        Args:
            pieces: (number of rows, CRC-32) of every piece, in the order of the rows.
        """
        crc = zlib.crc32(self._npy_header)
        for count, piece in pieces:
            crc = crc_of_joined(crc, piece, count * self._row_bytes)
        size = len(self._npy_header) + self.shape[0] * self._row_bytes
        end = self._start + self.shape[0] * self._row_bytes
        os.ftruncate(self._descriptor, end)
        os.pwrite(self._descriptor, _local_header(crc, size) + self._npy_header, 0)
        os.pwrite(self._descriptor, _directory(crc, size, end), end)
        self.flush()

    def close(self) -> None:
        """Close the file, finished or not."""
        os.close(self._descriptor)


def crc_of_joined(first: int, second: int, second_length: int) -> int:
    """Return the CRC-32 of two concatenated byte strings, given theirs and the length of the second.

    Bytes that follow a string multiply its CRC by x^(8 x length) modulo the CRC's polynomial over GF(2).
    """
    power, factor = 1 << 31, 1 << 23  # x^0 and x^8; bit 31 is x^0
    while second_length:
        if second_length & 1:
            power = _product(power, factor)
        factor = _product(factor, factor)
        second_length >>= 1
    return _product(first, power) ^ second


def _product(a: int, b: int) -> int:
    """Return a x b modulo the CRC-32 polynomial."""
    total = 0
    for bit in range(31, -1, -1):
        if a >> bit & 1:
            total ^= b
        b = b >> 1 ^ (_CRC_POLYNOMIAL if b & 1 else 0)
    return total


def _npy_header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    out = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(out, {"descr": descr, "fortran_order": False, "shape": shape})
    return out.getvalue()


def _sizes64(size: int) -> bytes:
    return struct.pack("<2H2Q", 1, 16, size, size)


def _local_header(crc: int, size: int) -> bytes:
    extra = _sizes64(size)
    fixed = (b"PK\3\4", _VERSION, 0, 0, 0, _DATE, crc, _ALL_ONES_32, _ALL_ONES_32, len(_NAME), len(extra))
    return _LOCAL.pack(*fixed) + _NAME + extra


def _directory(crc: int, size: int, at: int) -> bytes:
    """Return the central directory, which begins at byte `at`, and the records that end the archive."""
    extra, ones = _sizes64(size), _ALL_ONES_32
    entry = (b"PK\1\2", _VERSION, _VERSION, 0, 0, 0, _DATE, crc, ones, ones, len(_NAME), len(extra), 0, 0, 0, 0, 0)
    central = _CENTRAL.pack(*entry) + _NAME + extra
    end = at + len(central)
    end64 = _END64.pack(b"PK\6\6", _END64.size - 12, _VERSION, _VERSION, 0, 0, 1, 1, len(central), at)
    locator = _LOCATOR64.pack(b"PK\6\7", 0, end, 1)
    return central + end64 + locator + _END.pack(b"PK\5\6", 0, 0, 1, 1, len(central), ones, 0)
