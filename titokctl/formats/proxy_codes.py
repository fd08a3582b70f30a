"""The proxy codes of a run's recorded crops, computed once and read from then on.

Specification: `<run>/proxy-codes.npy` is a NumPy array, `<u2`, C order, of shape (crops x images, N). Row
c x images + i holds the N codes of image i in crop number c, each plus 1; 0 stands for a code that is not known yet. A
row counts only when each of its codes is known and below the size of the VQGAN's codebook. So a writer may be killed at
any moment, and several processes may write the same row, since they write the same numbers. Which crop has which
number, and which VQGAN made the codes, follows from run.json beside it. The file MAY be removed: codes are then
computed again.
"""

from pathlib import Path

import numpy as np

from titokctl.errors import UserError
from titokctl.formats.atomic import atomic_path, claim

NAME = "proxy-codes.npy"


class ProxyCodes:
    """The file, mapped into memory: all processes of a machine share it.

    Args:
        path: made by `create`.
        shape: rows and codes of a row.
        codebook_size: every code is below it; at most 65,535.

    Raises UserError when the file is damaged or of another shape.
    """

    def __init__(self, path: Path, shape: tuple[int, int], codebook_size: int) -> None:
        self._codebook_size = codebook_size
        hint = f"remove it, and codes are computed again: rm {path}"
        try:
            found = np.lib.format.open_memmap(path, "r")  # to write, it would make a file longer that was cut off
        except ValueError as error:
            raise UserError(f"{path} is damaged: it is not a complete NumPy array", hint) from error
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}", hint) from error
        if (found.shape, found.dtype) != (shape, np.dtype("<u2")):
            raise UserError(f"{path} holds {found.dtype} {found.shape} where uint16 {shape} was expected", hint)
        self._stored = np.lib.format.open_memmap(path, "r+")

    def read(self, rows: np.ndarray) -> np.ndarray | None:
        """(n, N) int64 codes of `rows` (n,) int64, or None when any of them is not known."""
        codes = self._stored[rows] - np.uint16(1)  # what is not known becomes 65,535
        return codes.astype(np.int64) if (codes < self._codebook_size).all() else None

    def write(self, rows: np.ndarray, codes: np.ndarray) -> None:
        """Keep the codes (n, N) of `rows` (n,) int64."""
        self._stored[rows] = codes.astype(np.uint16) + np.uint16(1)


def create(path: Path, shape: tuple[int, int]) -> None:
    """An empty file with all of its room on the disk, so that writing through the map can't fail later.

    Raises UserError when the disk is too full for it.
    """
    with atomic_path(path) as temporary:
        np.lib.format.open_memmap(temporary, "w+", np.dtype("<u2"), shape)
        claim(temporary, temporary.stat().st_size)
