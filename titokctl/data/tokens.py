"""Cached ids on their way to a generator.

For a GPU the ids of all views are put beside the model once (ImageNet: 82 MB a view) and batches are gathered there.
What does not fit, and what is wanted on the CPU, is gathered from the memory map, which all processes of a machine
share. Letters: N images, K latent tokens, B batch, V codebook size.
"""

import zlib
from dataclasses import dataclass

import numpy as np
import torch

from titokctl.data.order import batch_positions
from titokctl.formats.token_cache import TokenCache

DEVICE_BUDGET_BYTES = 4 << 30
_ENTROPY_ROWS = 1 << 18


@dataclass(frozen=True)
class TokenBatch:
    """ids (B, K) int64 and labels (B,) int64 (-1: no label)."""

    ids: torch.Tensor
    labels: torch.Tensor


class TokenRows:
    """Some rows of a cache, in some of its views.

    Args:
        cache: an open cache.
        views: names of views; "plain" is /tokens. Each image is seen in one of them per epoch, drawn at random.
        rows: (n,) int64 positions in the cache, or None for all.
        device: where batches are wanted; a cache above DEVICE_BUDGET_BYTES is gathered from the memory map.
    """

    def __init__(
        self,
        cache: TokenCache,
        views: tuple[str, ...],
        rows: np.ndarray | None,
        device: torch.device | str = "cpu",
    ) -> None:
        self._views = [cache.view(name) for name in views]
        self._codebook_size = cache.codebook_size
        self._rows = rows
        self.count = len(cache) if rows is None else len(rows)
        self._device = torch.device(device)
        self._labels = torch.from_numpy(np.asarray(cache.labels if rows is None else cache.labels[rows]))
        size = len(views) * self.count * self._views[0].shape[1] * self._views[0].itemsize
        self._resident = self._load() if self._device.type != "cpu" and size <= DEVICE_BUDGET_BYTES else None

    def positions(self, seed: int, step: int, size: int) -> torch.Tensor:
        """(size,) int64: the global batch of `step` among these rows, a permutation of them per epoch."""
        return torch.from_numpy(batch_positions(seed, step, size, self.count)[1])

    def at(self, positions: torch.Tensor, view: torch.Tensor) -> TokenBatch:
        """Rows at `positions` (B,) int64 on the CPU among the chosen ones, each in the view numbered by `view` (B,)."""
        labels = self._labels[positions].long().to(self._device, non_blocking=True)
        if self._resident is not None:
            flat = (view * self.count + positions).to(self._device, non_blocking=True)
            return TokenBatch(_as_int64(self._resident[flat]), labels)
        rows = positions.numpy() if self._rows is None else self._rows[positions.numpy()]
        gathered = np.empty((len(rows), self._views[0].shape[1]), self._views[0].dtype)
        for number, ids in enumerate(self._views):
            here = (view == number).numpy()
            gathered[here] = ids[rows[here]]
        return TokenBatch(_as_int64(_signed(gathered)).to(self._device), labels)

    def unigram_entropy(self) -> float:
        """Entropy in nats of one id taken at random: what a model pays that knows how often each code occurs, no more.

        Counted over the first view, evenly spread rows of it where there are many.
        """
        chosen = np.linspace(0, self.count - 1, min(self.count, _ENTROPY_ROWS)).astype(np.int64)
        ids = self._views[0][chosen if self._rows is None else self._rows[chosen]]
        share = np.bincount(ids.ravel(), minlength=self._codebook_size) / ids.size
        return float(-(share[share > 0] * np.log(share[share > 0])).sum())

    def _load(self) -> torch.Tensor:
        """(views x n, K) on the device, signed of the cached width."""
        chosen = [ids if self._rows is None else ids[self._rows] for ids in self._views]
        return torch.cat([_signed(np.ascontiguousarray(ids)).to(self._device) for ids in chosen])


def held_out(keys: np.ndarray, fraction: float) -> np.ndarray:
    """(N,) bool: which images are kept from training, by a hash of their key, so that it survives re-caching."""
    if fraction == 0:
        return np.zeros(len(keys), bool)
    hashes = np.fromiter((zlib.crc32(k) for k in keys), np.uint32, len(keys))
    return hashes < fraction * 2**32


def _signed(ids: np.ndarray) -> torch.Tensor:
    """Unsigned ids as the signed type of the same width, which every torch kernel knows; bits unchanged."""
    return torch.from_numpy(ids.view(np.int16 if ids.itemsize == 2 else np.int32))


def _as_int64(ids: torch.Tensor) -> torch.Tensor:
    """The ids' values again, as int64."""
    return ids.long() & (0xFFFF if ids.dtype == torch.int16 else 0xFFFFFFFF)
