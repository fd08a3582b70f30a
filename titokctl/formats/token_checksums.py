"""Checksums of a token cache: a CRC-32 for every 65,536 rows of ids, one SHA-256 over all contents."""

import hashlib
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np

from titokctl.errors import UserError
from titokctl.formats import hdf5_checks

ROWS_PER_CRC = 65_536
_TEXT = ("class_names", "keys")


class ContentsChecksums:
    """The checksums of a cache as the specification says, over blocks of rows of its datasets."""

    def __init__(self) -> None:
        self._of: dict[str, _Dataset] = {}

    def update(self, path: str, block: np.ndarray) -> None:
        """Add the next rows of the dataset /path (little-endian)."""
        if path not in self._of:
            self._of[path] = _Dataset(block)
        self._of[path].update(block)

    def crcs(self, path: str) -> list[int]:
        """One CRC-32 per 65,536 rows of a dataset, the last one over what is left."""
        return self._of[path].crcs

    def sha256(self) -> str:
        """Hex digest of all contents so far."""
        total = hashlib.sha256()
        for path, one in sorted(self._of.items()):
            shape = ",".join(map(str, (one.rows, *one.row_shape)))
            total.update(f"/{path} {one.dtype.str} {shape} {one.sha.hexdigest()}\n".encode())
        return total.hexdigest()


class _Dataset:
    def __init__(self, block: np.ndarray) -> None:
        self.dtype, self.row_shape = block.dtype, block.shape[1:]
        self.sha = hashlib.sha256()
        self.crcs: list[int] = []
        self.rows = 0

    def update(self, block: np.ndarray) -> None:
        data, row = _bytes_of(block), block.itemsize * int(np.prod(self.row_shape))
        self.sha.update(data)
        first = 0
        while first < len(block):
            begun = self.rows % ROWS_PER_CRC
            n = min(ROWS_PER_CRC - begun, len(block) - first)
            crc = zlib.crc32(data[first * row : (first + n) * row], self.crcs.pop() if begun else 0)
            self.crcs.append(crc)
            self.rows += n
            first += n


def _bytes_of(block: np.ndarray) -> memoryview:
    """The bytes of an array, without a copy where it is contiguous."""
    return memoryview(np.ascontiguousarray(block).reshape(-1).view(np.uint8))  # type: ignore[arg-type]


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
        found = ContentsChecksums()
        for name in (*ids, "labels", *(name for name in _TEXT if name in file)):
            for block in _blocks(file[name]):
                found.update(name, block)
                advance(len(block) if name in ids else 0)
            if name in ids:
                problems += _wrong_blocks(checksums, name, found.crcs(name), len(file[name]))
        if found.sha256() != hdf5_checks.attribute(checksums, "sha256", str) and not problems:
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
    for first in range(0, max(len(found), 1), ROWS_PER_CRC):
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
