"""Read .npz and .npy files of unknown origin: no pickles, sizes checked before memory is spent, arrays in pieces.

Specification: an .npz is a ZIP archive of .npy members (numpy.lib.format). Other members are ignored.
"""

import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from titokctl.errors import UserError
from titokctl.formats.file_kind import described, head_of, hint_for

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_MAX_WHOLE_BYTES = 2 << 30
_SUFFIX, _UNNAMED = ".npy", "arr_0"
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError)
# numpy tokenizes a header that it can't read as an expression, to see if Python 2 wrote it.
_NOT_A_HEADER = (ValueError, KeyError, TypeError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError)
# What np.load and the arrays of its result raise for damaged or planted bytes in memory.
NPZ_DAMAGE = (
    zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, NotImplementedError, RuntimeError, IndexError,
    *_NOT_A_HEADER,
)  # fmt: skip
_AGAIN = "copy or make it again"


@dataclass(frozen=True)
class Member:
    """Shape and type of an array that may not have been read yet."""

    shape: tuple[int, ...]
    dtype: np.dtype


class NpzReader:
    """An .npz that is open for reading; a context manager.

    Args:
        path: the file.

    Raises:
        UserError: it can't be opened, or is not a ZIP archive.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            head = head_of(path)
            what = f"({error})" if head.startswith(b"PK") else f"but {described(head)}"
            raise UserError(f"{path} is not an .npz file, or is cut short {what}", hint_for(head, path)) from error
        self.names = [name.removesuffix(_SUFFIX) for name in self._zip.namelist() if name.endswith(_SUFFIX)]

    def __enter__(self) -> "NpzReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def member(self, name: str) -> Member:
        """Return what the header of `name` declares. Raises UserError when it is missing, or not plain numbers."""
        with self._open(name) as file:
            return self._header(name, file)

    def array(self, name: str) -> np.ndarray:
        """Return the whole array. Raises UserError when it is missing, damaged, too large, or not plain numbers."""
        member = self.member(name)
        length = math.prod(member.shape)
        if length * member.dtype.itemsize > _MAX_WHOLE_BYTES:
            raise UserError(
                f"{name} of {self.path} is {length * member.dtype.itemsize:,} bytes, too large to be read at once"
            )
        read = self._read(name, Member((length,), member.dtype), max(1, length))
        return np.concatenate([np.empty(0, member.dtype), *read]).reshape(member.shape)

    def rows(self, name: str, at_once: int, wanted: range | None = None) -> Iterator[np.ndarray]:
        """Yield all rows, or the `wanted` ones, in order, at most `at_once` at a time. Raises as `array` does.

        The archive's checksum is checked only when all rows are read.
        """
        return self._read(name, self.member(name), at_once, wanted)

    def _read(self, name: str, member: Member, at_once: int, wanted: range | None = None) -> Iterator[np.ndarray]:
        wanted = wanted if wanted is not None else range(member.shape[0])
        row_bytes = math.prod(member.shape[1:]) * member.dtype.itemsize
        with self._open(name) as file:
            self._header(name, file)
            try:
                if wanted.start:
                    file.seek(wanted.start * row_bytes, os.SEEK_CUR)
                for first in range(wanted.start, wanted.stop, at_once):
                    count = min(at_once, wanted.stop - first)
                    data = file.read(count * row_bytes)
                    if len(data) != count * row_bytes:
                        raise UserError(f"{name} of {self.path} is shorter than its header says", _AGAIN)
                    yield np.frombuffer(data, member.dtype).reshape(count, *member.shape[1:])
            except _DAMAGE as error:
                raise UserError(f"{name} of {self.path} is damaged ({error})", _AGAIN) from error

    def _open(self, name: str) -> IO[bytes]:
        try:
            return self._zip.open(name + _SUFFIX)
        except KeyError as error:
            found = ", ".join(sorted(self.names)) or "nothing"
            raise UserError(f"{self.path} has no array {name}; it has {found}") from error
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError) as error:
            raise UserError(f"{name} of {self.path} cannot be read ({error})") from error

    def _size(self, name: str) -> int:
        """Return the bytes of a member."""
        return self._zip.getinfo(name + _SUFFIX).file_size

    def _header(self, name: str, file: IO[bytes]) -> Member:
        try:
            shape, fortran, dtype = _HEADERS[np.lib.format.read_magic(file)](file)
        except _DAMAGE as error:
            raise UserError(f"{name} of {self.path} is damaged ({error})", _AGAIN) from error
        except _NOT_A_HEADER as error:
            raise UserError(f"{name} of {self.path} is not a numpy array ({error})") from error
        if dtype.hasobject or dtype.kind not in "biufU":
            raise UserError(f"{name} of {self.path} holds {dtype}, not plain numbers; pickled objects are never read")
        if fortran and len(shape) > 1:
            raise UserError(f"{name} of {self.path} is in Fortran order", "save it with numpy.ascontiguousarray")
        declared = math.prod(shape) * dtype.itemsize
        held = self._size(name)
        if declared > held or any(length < 0 for length in shape):
            raise UserError(f"{name} of {self.path} declares {declared:,} bytes, but holds {held:,}")
        return Member(shape, dtype)


class NpyReader(NpzReader):
    """An .npy, read as an .npz that holds one array under the name that NumPy gives to arrays without one.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.names = path, [_UNNAMED]

    def __exit__(self, *_: object) -> None:
        pass

    def _open(self, name: str) -> IO[bytes]:
        try:
            return self.path.open("rb")
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror}") from error

    def _size(self, name: str) -> int:
        return self.path.stat().st_size


def opened(path: Path) -> NpzReader:
    """Open an .npz or .npy, which its suffix tells apart. Raises UserError when that isn't possible."""
    return NpyReader(path) if path.suffix == _SUFFIX else NpzReader(path)
