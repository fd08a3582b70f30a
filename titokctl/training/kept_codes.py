"""Proxy codes that are computed once: images come in a few recorded crops again and again, whose codes a file keeps.

Letters: b images of a micro batch, N places of the grid of proxy codes.
"""

from collections.abc import Callable

import numpy as np
import torch

from titokctl.data.image_decoder import on_host
from titokctl.data.workers import Prefetch
from titokctl.formats.proxy_codes import ProxyCodes
from titokctl.models.device import send
from titokctl.training.image_stage import Micro

Views = Callable[[int], tuple[np.ndarray, np.ndarray]]


class KeptCodes:
    """The codes of micro batches, where all of their rows were seen before.

    A micro batch is known as a whole or computed as a whole, so that the VQGAN always works on the same sizes.

    Args:
        file: with a row for each crop of each image.
        views: crop numbers and positions, both (B,) int64, of the images of a step's global batch.
        count: images of the source.
        mine: this process's rows of the global batch.
    """

    def __init__(self, file: ProxyCodes, views: Views, count: int, mine: slice) -> None:
        self._file, self._views, self._count = file, views, count
        self._mine, self._step = mine, -1
        self._ahead = Prefetch(self._touch)
        self._coming: list[tuple[np.ndarray, Callable[[], dict[str, np.ndarray]]]] = []

    def read(self, micro: Micro) -> torch.Tensor | None:
        """(b, N) int64 on the device of the images, or None when they have to be computed."""
        self._write_what_came()
        if micro.images.is_cuda and micro.step != self._step:
            self._step = micro.step
            self._ahead.get(micro.step)
        codes = self._file.read(self._rows(micro))
        return None if codes is None else send(torch.from_numpy(codes), micro.images.device)

    def keep(self, micro: Micro, codes: torch.Tensor) -> None:
        """Keep what was computed, codes (b, N); from a GPU they are fetched while it works on."""
        self._coming.append((self._rows(micro), on_host({"codes": codes})))
        if not codes.is_cuda:
            self._write_what_came()

    def _write_what_came(self) -> None:
        for rows, fetch in self._coming:  # of the micro batch before: the device has later work in hand
            self._file.write(rows, fetch()["codes"])
        self._coming.clear()

    def _touch(self, step: int) -> None:
        """Read the codes of a step from the disk, so that they are in memory when they are wanted."""
        self._file.read(self._rows_of(step)[self._mine])

    def _rows(self, micro: Micro) -> np.ndarray:
        return self._rows_of(micro.step)[micro.rows]

    def _rows_of(self, step: int) -> np.ndarray:
        crops, positions = self._views(step)
        return crops * self._count + positions
