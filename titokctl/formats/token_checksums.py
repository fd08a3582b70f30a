"""Checksums of a token cache: a CRC-32 for every 65,536 rows of ids, one SHA-256 over all contents."""

import hashlib
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import h5py
import numpy as np

from titokctl.errors import UserError
from titokctl.formats import hdf5_checks

ROWS_PER_CRC = 65_536
_TEXT = ("class_names", "keys")


class RunningChecksum:
    """CRC-32 of every 65,536 rows and SHA-256 of all, over blocks of any length."""

    def __init__(self) -> None:
        self._sha = hashlib.sha256()
        self._finished: list[int] = []
        self._crc = self._rows = 0

    def update(self, block: np.ndarray) -> None:
        """Add the next rows (C-contiguous, little-endian)."""
        data, row = _bytes_of(block), block.itemsize * int(np.prod(block.shape[1:]))
        self._sha.update(data)
        first = 0
        while first < len(block):
            n = min(ROWS_PER_CRC - self._rows, len(block) - first)
            self._crc = zlib.crc32(data[first * row : (first + n) * row], self._crc)
            self._rows += n
            first += n
            if self._rows == ROWS_PER_CRC:
                self._finished.append(self._crc)
                self._crc = self._rows = 0

    def crcs(self) -> list[int]:
        """One CRC-32 per 65,536 rows, the last one over what is left."""
        return self._finished + ([self._crc] if self._rows else [])

    def sha256(self) -> str:
        """Hex digest of all bytes so far."""
        return self._sha.hexdigest()


def _bytes_of(block: np.ndarray) -> memoryview:
    """The bytes of an array, without a copy where it is contiguous."""
    return memoryview(np.ascontiguousarray(block).reshape(-1).view(np.uint8))  # type: ignore[arg-type]


def contents_sha256(parts: Mapping[str, tuple[np.dtype, tuple[int, ...], str]]) -> str:
    """The checksum of contents: path -> (numpy type, shape, SHA-256 of the bytes), as the specification says."""
    total = hashlib.sha256()
    for path, (dtype, shape, sha) in sorted(parts.items()):
        total.update(f"/{path} {dtype.str} {','.join(map(str, shape))} {sha}\n".encode())
    return total.hexdigest()


def damaged_places(path: Path, advance: Callable[[int], None]) -> list[str]:
    """Compare a token cache with its checksums, block by block.

    Args:
        path: a cache that `TokenCache.open` accepts.
        advance: called with the number of rows of ids read since.

    Returns one sentence for each block of rows or dataset that changed since it was written; [] when none did.
    """
    with hdf5_checks.opened(path) as file:
        checksums, ids = file["checksums"], _datasets_of_rows(file)
        problems: list[str] = []
        sums = {}
        for name in (*ids, "labels", *(name for name in _TEXT if name in file)):
            found = file[name]
            running = RunningChecksum()
            for block in _blocks(found):
                running.update(block)
                advance(len(block) if name in ids else 0)
            if name in ids:
                problems += _wrong_blocks(checksums, name, running.crcs(), len(found))
            sums[name] = (found.dtype, found.shape, running.sha256())
        if contents_sha256(sums) != hdf5_checks.attribute(checksums, "sha256", str) and not problems:
            problems.append("labels, keys, class names or the checksum itself changed since the file was written")
        return problems


def check_rows(path: Path) -> None:
    """Compare the rows of a token cache, and those of its views, with their CRC-32s, at the speed of memory.

    Raises UserError when some changed since they were written.
    """
    with hdf5_checks.opened(path) as file:
        for name in _datasets_of_rows(file):
            found = [zlib.crc32(_bytes_of(block)) for block in _blocks(file[name])]
            wrong = _wrong_blocks(file["checksums"], name, found, len(file[name]))
            if wrong:
                raise UserError(
                    f"{path} is damaged: {wrong[0]} since the file was written",
                    "fetch or make it again; `titokctl verify` names all that changed",
                )


def _datasets_of_rows(file: h5py.File) -> list[str]:
    views = hdf5_checks.subgroup(file, "views")
    names = hdf5_checks.names_of(views) if views else ()
    return ["latents" if "latents" in file else "tokens", *(f"views/{name}" for name in names)]


def _blocks(found: h5py.Dataset) -> Iterator[np.ndarray]:
    for first in range(0, len(found), ROWS_PER_CRC):
        yield found[first : first + ROWS_PER_CRC]


def _wrong_blocks(checksums: h5py.Group, name: str, found: list[int], num_rows: int) -> list[str]:
    group = checksums
    for part in name.split("/")[:-1]:
        inner = hdf5_checks.subgroup(group, part)
        if inner is None:
            return [f"/checksums/{name} is missing"]
        group = inner
    recorded = hdf5_checks.dataset(group, name.split("/")[-1])
    if recorded.shape != (len(found),) or recorded.dtype != np.dtype("<u4"):
        raise UserError(f"/checksums/{name} of {checksums.file.filename} is not {len(found)} CRC-32 numbers")
    wrong = np.flatnonzero(recorded[:] != np.array(found, np.uint32))
    ranges = [(i * ROWS_PER_CRC, min((i + 1) * ROWS_PER_CRC, num_rows) - 1) for i in wrong.tolist()]
    return [f"/{name}: rows {first:,} to {last:,} changed" for first, last in ranges]
