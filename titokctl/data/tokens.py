"""Batches of cached ids for a generator.

On a GPU the ids of all views are copied to its memory once (ImageNet: 82 MB per view) and batches are gathered there.
On the CPU, or if they don't fit, batches are gathered from the memory map, which all processes of a machine share.
Letters: N images, K latent tokens, B batch, V codebook size.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from titokctl.data.order import batch_positions
from titokctl.formats.token_cache import TokenCache, labelled_rows
from titokctl.models.device import send

DEVICE_BUDGET_BYTES = 4 << 30
_ENTROPY_ROWS = 1 << 18


@dataclass(frozen=True)
class TokenBatch:
    """ids (B, K) int64, or latents (B, K, C) float32, and labels (B,) int64 (-1: no label)."""

    ids: torch.Tensor
    labels: torch.Tensor


class TokenRows:
    """Some rows of a cache, in some of its views.

    Args:
        cache: an open cache.
        views: names of views; "plain" is /tokens.
        rows: (n,) int64 positions in the cache, or None for all.
        device: the device of the batches; a cache above DEVICE_BUDGET_BYTES is gathered from the memory map.
    """

    def __init__(
        self,
        cache: TokenCache,
        views: tuple[str, ...],
        rows: np.ndarray | None,
        device: torch.device | str = "cpu",
    ) -> None:
        self._views = [cache.view(name) for name in views]
        self.is_discrete, self._codebook_size = cache.is_discrete, cache.codebook_size
        self._rows = rows
        self.count = len(cache) if rows is None else len(rows)
        self._device = torch.device(device)
        self._labels = torch.from_numpy(np.asarray(cache.labels if rows is None else cache.labels[rows]))
        size = len(views) * self.count * self._views[0][:1].nbytes
        self._resident = self._load() if self._device.type != "cpu" and size <= DEVICE_BUDGET_BYTES else None

    def positions(self, seed: int, step: int, size: int) -> torch.Tensor:
        """Return the global batch of `step` among these rows, (size,) int64; each epoch is a permutation of them."""
        return torch.from_numpy(batch_positions(seed, step, size, self.count)[1])

    def at(self, positions: torch.Tensor, view: torch.Tensor) -> TokenBatch:
        """Return the rows at `positions` (B,) int64 on the CPU, each in the view with the number in `view` (B,)."""
        labels = send(self._labels[positions].long(), self._device)
        if self._resident is not None:
            flat = send(view * self.count + positions, self._device)
            return TokenBatch(_values(self._resident[flat]), labels)
        rows = positions.numpy() if self._rows is None else self._rows[positions.numpy()]
        gathered = np.empty((len(rows), *self._views[0].shape[1:]), self._views[0].dtype)
        for number, ids in enumerate(self._views):
            here = (view == number).numpy()
            gathered[here] = ids[rows[here]]
        return TokenBatch(_values(send(_signed(gathered), self._device)), labels)

    def class_rows(self, num_classes: int) -> list[int]:
        """Return how many of these rows each of the first `num_classes` classes has."""
        return [int(count) for count in labelled_rows(self._labels.numpy(), num_classes)[:num_classes]]

    def first_view(self, count: int) -> torch.Tensor:
        """Return up to `count` evenly spaced rows of the first view, on the CPU, in the type of the batches."""
        chosen = np.linspace(0, self.count - 1, min(self.count, count)).astype(np.int64)
        rows = self._views[0][chosen if self._rows is None else self._rows[chosen]]
        return _values(_signed(np.ascontiguousarray(rows)))

    def unigram_entropy(self) -> float:
        """Return the entropy in nats of a random id: the loss of a model that only knows the frequency of each code.

        Computed from the first view; of many rows, from evenly spaced ones.
        """
        chosen = np.linspace(0, self.count - 1, min(self.count, _ENTROPY_ROWS)).astype(np.int64)
        ids = self._views[0][chosen if self._rows is None else self._rows[chosen]]
        share = np.bincount(ids.ravel(), minlength=self._codebook_size) / ids.size
        return float(-(share[share > 0] * np.log(share[share > 0])).sum())

    def _load(self) -> torch.Tensor:
        """(views x n, K) on the device, signed of the cached width."""
        chosen = [ids if self._rows is None else ids[self._rows] for ids in self._views]
        return torch.cat([_signed(np.ascontiguousarray(ids)).to(self._device) for ids in chosen])


def held_out(keys: Sequence[bytes], fraction: float) -> np.ndarray:
    """(N,) bool: which images are kept from training, by a hash of their key, so that it survives re-caching."""
    if fraction == 0:
        return np.zeros(len(keys), bool)
    hashes = np.fromiter((zlib.crc32(k) for k in keys), np.uint32, len(keys))
    return hashes < fraction * 2**32


def _signed(ids: np.ndarray) -> torch.Tensor:
    """View unsigned ids as the signed type of the same width, which all torch kernels support; bits are unchanged.

    Latents stay as they are.
    """
    if ids.dtype.kind == "f":
        return torch.from_numpy(ids.astype(np.float16, copy=False))
    return torch.from_numpy(ids.view(np.int16 if ids.itemsize == 2 else np.int32))


def _values(ids: torch.Tensor) -> torch.Tensor:
    """Convert ids from `_signed` to their values, as int64; latents to float32."""
    if ids.is_floating_point():
        return ids.float()
    return ids.long() & (0xFFFF if ids.dtype == torch.int16 else 0xFFFFFFFF)
