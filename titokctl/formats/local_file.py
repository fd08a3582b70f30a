"""Local files as sources of images: their state, their identity, and reading with retries.

An error while reading is never taken for an absent or an empty file. Errors that network file systems report for a
moment are retried; what remains is raised in words. A file whose size or time of modification differs from the list
that it was found in is an error, too: rows and labels would belong to other images.
"""

import bisect
import errno
import hashlib
import itertools
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from titokctl.errors import UserError

T = TypeVar("T")
PAUSES = (0.05, 0.5, 2.0)  # seconds before each retry
_NAMES = ("EIO", "ESTALE", "EAGAIN", "EINTR", "ETIMEDOUT", "EREMOTEIO", "ENOLINK")
_TEMPORARY = frozenset(getattr(errno, name) for name in _NAMES if hasattr(errno, name))
# Errors that say something about a file, not about the machine; they stay until somebody changes the file.
_OF_THE_FILE = frozenset(
    (errno.EACCES, errno.EPERM, errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO, errno.ENAMETOOLONG)
)
_START_OVER = "work that was begun can't be resumed with other files: start over with --overwrite"


@dataclass(frozen=True)
class Extent:
    """The part of the contents that is hashed: all of up to `whole` bytes, of more `blocks` spread evenly."""

    whole: int
    blocks: int
    block_bytes: int


OF_SOURCE = Extent(64 << 20, 256, 64 << 10)
OF_SHARD = Extent(1 << 20, 8, 4 << 10)


@dataclass(frozen=True, slots=True)
class FileState:
    """The size in bytes of a file, and when it was last modified."""

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, found: os.stat_result) -> "FileState":
        """Return the state in the result of a `stat`."""
        return cls(found.st_size, found.st_mtime_ns)


def retried(read: Callable[[], T], path: Path | str, verb: str = "read") -> T:
    """Return read(), which is called again after an error that may pass.

    Raises UserError, which names the file and the error, when it does not pass.
    """
    for pause in (*PAUSES, None):
        try:
            return read()
        except OSError as error:
            if pause is None or error.errno not in _TEMPORARY:
                raise cannot(path, error, verb) from error
            time.sleep(pause)
    raise AssertionError("not reached")


def cannot(path: Path | str, error: OSError, verb: str = "read") -> UserError:
    """Return an error of the operating system in words."""
    hint = {
        errno.EACCES: f"give yourself access to it: chmod u+rX {path}",
        errno.EIO: "the disk or the network reports a fault; run the same command again once it is repaired",
        errno.ESTALE: "the server's files were replaced or it was restarted; run the same command again",
        errno.EMFILE: "allow more open files: ulimit -n 65536",
    }.get(error.errno or 0, "run the same command again once it can be read; finished work is kept")
    return UserError(f"cannot {verb} {path}: {error.strerror or error}", hint)


def changed(path: Path | str, then: FileState, now: FileState) -> UserError:
    """Return the error for a file that has changed since it was listed."""
    how = (
        f"it had {then.size:,} bytes and has {now.size:,}" if then.size != now.size else "it was written to in between"
    )
    return UserError(f"{path} changed while it was in use: {how}", _START_OVER)


def read_file(path: Path, limit: int, expected: FileState | None = None) -> bytes:
    """Return a regular file, or its first `limit` bytes.

    Args:
        expected: its state when it was listed.

    Raises UserError when it can't be read, is not a regular file, or is not in the state `expected`.
    """

    def read() -> bytes:
        # A pipe would block open(2), and a device would never end.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise UserError(f"{path} is not a regular file", "leave it out of the folder")
            if expected is not None and FileState.of(found) != expected:
                raise changed(path, expected, FileState.of(found))
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                return file.read(limit)
        finally:
            os.close(descriptor)

    return retried(read, path)


@dataclass(frozen=True)
class Identity:
    """Hashes that tell a set of files from others.

    Args:
        states: SHA-256 of path, size and time of modification of every file.
        contents: SHA-256 of every byte of up to 64 MiB in all; of larger sets, of 256 blocks of 64 KiB spread evenly.
        is_whole: True if `contents` covers every byte.
    """

    states: str
    contents: str
    is_whole: bool

    @classmethod
    def of(cls, paths: Sequence[Path | str], states: Sequence[FileState]) -> "Identity":
        """Read what is needed of the files `paths`, in a fixed order; `states` are those of each."""
        listed = hashlib.sha256()
        real: dict[str, str] = {}  # of folders: following the links of each path of a large set takes seconds
        for path, state in zip(paths, states, strict=True):
            folder, name = os.path.split(path)
            if folder not in real:
                real[folder] = os.path.realpath(folder)
            listed.update(os.fsencode(f"{real[folder]}/{name}\0{state.size} {state.mtime_ns}\n"))
        is_whole = sum(state.size for state in states) <= OF_SOURCE.whole
        return cls(listed.hexdigest(), contents_of(paths, states, OF_SOURCE), is_whole)


def contents_of(paths: Sequence[Path | str], states: Sequence[FileState], extent: Extent) -> str:
    """Return the SHA-256 of the contents of files, as far as `extent` says."""
    total = hashlib.sha256()
    for path, offset, count in _pieces(paths, states, extent):
        total.update(_bytes_at(path, offset, count))
    return total.hexdigest()


def _pieces(
    paths: Sequence[Path | str], states: Sequence[FileState], extent: Extent
) -> Iterator[tuple[Path | str, int, int]]:
    """Yield which bytes (path, offset, count) of the files are hashed."""
    ends = list(itertools.accumulate(state.size for state in states))
    length = ends[-1] if ends else 0
    if length <= extent.whole:
        yield from ((path, 0, state.size) for path, state in zip(paths, states, strict=True))
        return
    for block in range(extent.blocks):
        at = block * (length - 1) // (extent.blocks - 1)
        i = bisect.bisect_right(ends, at)
        begin = min(at, max(ends[i] - extent.block_bytes, ends[i] - states[i].size))
        yield paths[i], begin - (ends[i] - states[i].size), extent.block_bytes


def _bytes_at(path: Path | str, offset: int, count: int) -> bytes:
    def read() -> bytes:
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(count)

    try:
        return retried(read, path)
    except UserError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in _OF_THE_FILE:
            return error.message.encode()  # whoever reads the file gets the error
        raise  # a fault of the machine is not content: later, the same files would be told from these
