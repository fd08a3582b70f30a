"""Rows of ids, or of latents, to bytes of pixels on the host, while the device goes on with the next."""

from collections.abc import Callable, Mapping

import numpy as np
import torch

from titokctl.data.images import encode_png, encode_webp, to_bytes
from titokctl.errors import UserError
from titokctl.formats.image_output import Encode
from titokctl.formats.token_header import CacheHeader
from titokctl.models.device import default_batch_size
from titokctl.models.inference import can_infer, prepared
from titokctl.models.precision import PRECISIONS, Precision, precision
from titokctl.models.titok.tokenizer import TiTok

# What makes the files of an output format.
ENCODERS: dict[str, Encode] = {"png": encode_png, "webp": encode_webp, "wds": encode_png}


def recorded_precision(header: CacheHeader, device: str) -> Precision | None:
    """Return the precision in which the images of a sample set were decoded, given the header of its ids.

    None for other caches, and where `device` has no kernels for that precision.
    """
    found = header.made_with.get("precision") if header.source.get("kind") == "samples" else None
    return found if found in PRECISIONS and can_infer(device, found) else None


class ImageDecoder:
    """A tokenizer's second half, ready on `device` in the precision `precision_name`; the tokenizer stays as it is.

    Raises UserError for one that was trained in stage proxy only and makes no pixels.
    """

    def __init__(self, tokenizer: TiTok, device: str, precision_name: Precision) -> None:
        if not tokenizer.config.pixel_decoder:
            hint = "train its decoder with the -decoder recipe of the same name and --init, and name that run"
            raise UserError("this tokenizer was trained in stage proxy only and makes no pixels", hint)
        self._model = prepared(tokenizer, device, precision_name, "decoder")
        self._device, self._precision = device, precision_name

    def images(self, rows: torch.Tensor) -> torch.Tensor:
        """Images (n, S, S, 3) uint8 on the device, unchecked, so that nobody waits.

        Args:
            rows: (n, K) int64 ids below V, or (n, K, C) float32 latents of a Gaussian tokenizer; on the device.
        """
        with precision(self._precision, self._device):
            return to_bytes(self._model.detokenize_unchecked(rows))

    def begin(self, rows: np.ndarray, batch_size: int) -> Callable[[], np.ndarray]:
        """Begin to decode rows (n, K) of ids or (n, K, C) of latents. What is returned waits for (n, S, S, 3) uint8.

        `batch_size` rows, n at least, go through, so that no image depends on how many there are.
        """
        dtype = torch.int64 if rows.dtype.kind == "u" else torch.float32
        # From pinned memory: the copy then waits for nothing that the device has in hand.
        pinned = torch.device(self._device).type == "cuda"
        padded = torch.zeros((batch_size, *rows.shape[1:]), dtype=dtype, pin_memory=pinned)
        padded[: len(rows)] = torch.from_numpy(rows.astype(np.int64 if dtype == torch.int64 else np.float32))
        fetch = on_host({"images": self.images(padded.to(self._device, non_blocking=True))[: len(rows)]})
        return lambda: fetch()["images"]

    def decoded(self, rows: np.ndarray) -> np.ndarray:
        """Some rows as images (n, S, S, 3) uint8."""
        size = min(default_batch_size(self._device, "decode"), len(rows))
        blocks = (rows[first : first + size] for first in range(0, len(rows), size))
        return np.concatenate([self.begin(block, size)() for block in blocks])


def on_host(tensors: Mapping[str, torch.Tensor]) -> Callable[[], dict[str, np.ndarray]]:
    """Begin to copy tensors to the host without waiting. What is returned waits for them, in any thread."""
    event = None
    if any(tensor.is_cuda for tensor in tensors.values()):
        # Pinned memory is taken from a pool and goes back there with the array.
        tensors = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
            for name, tensor in tensors.items()
        }
        event = torch.cuda.Event()
        event.record()

    def fetch() -> dict[str, np.ndarray]:
        if event is not None:
            event.synchronize()
        return {name: tensor.numpy() for name, tensor in tensors.items()}

    return fetch
