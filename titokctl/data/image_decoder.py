"""Decode rows of ids or latents to pixels on the host, while the device computes the next ones."""

from collections.abc import Callable, Mapping

import numpy as np
import torch

from titokctl.data.images import encode_png, encode_webp, to_bytes
from titokctl.errors import UserError
from titokctl.formats.image_output import Encode
from titokctl.formats.token_header import CacheHeader
from titokctl.models.device import current_device, default_batch_size, host_zeros, send
from titokctl.models.inference import can_infer, prepared
from titokctl.models.precision import PRECISIONS, Precision, precision
from titokctl.models.titok.tokenizer import TiTok

# Functions that make the files of an output format.
ENCODERS: dict[str, Encode] = {"png": encode_png, "webp": encode_webp, "wds": encode_png}


def recorded_precision(header: CacheHeader, device: str) -> Precision | None:
    """Return the precision in which the images of a sample set were decoded, given the header of its ids.

    Returns None for other caches, and where `device` has no kernels for that precision.
    """
    found = header.made_with.get("precision") if header.source.get("kind") == "samples" else None
    return found if found in PRECISIONS and can_infer(device, found) else None


def check_makes_pixels(tokenizer: TiTok) -> None:
    """Raise UserError when a tokenizer was trained in stage proxy only and makes no pixels."""
    if not tokenizer.config.pixel_decoder:
        hint = "train its decoder with the -decoder recipe of the same name and --init, and name that run"
        raise UserError("this tokenizer was trained in stage proxy only and does not produce pixels", hint)


class ImageDecoder:
    """The decoder of a tokenizer, prepared for `device` and the precision `precision_name`.

    The tokenizer itself is not modified. Raises UserError when it was trained in stage proxy only, without pixels.
    """

    def __init__(self, tokenizer: TiTok, device: str, precision_name: Precision) -> None:
        check_makes_pixels(tokenizer)
        self._model = prepared(tokenizer, device, precision_name, "decoder")
        self._device, self._precision = device, precision_name

    def images(self, rows: torch.Tensor) -> torch.Tensor:
        """Decode rows to images (n, S, S, 3) uint8 on the device; values are not checked, so the host never waits.

        Args:
            rows: (n, K) int64 ids below V, or (n, K, C) float32 latents of a Gaussian tokenizer; on the device.
        """
        with precision(self._precision, self._device):
            return to_bytes(self._model.detokenize_unchecked(rows))

    def begin(self, rows: np.ndarray, batch_size: int) -> Callable[[], np.ndarray]:
        """Begin to decode rows (n, K) of ids or (n, K, C) of latents.

        The rows are padded to `batch_size` (n at least), so that no image depends on how many there are.
        Returns a function that waits for the images (n, S, S, 3) uint8.
        """
        dtype = torch.int64 if rows.dtype.kind == "u" else torch.float32
        padded = host_zeros((batch_size, *rows.shape[1:]), dtype, self._device)
        padded[: len(rows)] = torch.from_numpy(rows.astype(np.int64 if dtype == torch.int64 else np.float32))
        fetch = on_host({"images": self.images(send(padded, self._device))[: len(rows)]})
        return lambda: fetch()["images"]

    def decoded(self, rows: np.ndarray) -> np.ndarray:
        """Decode a few rows to images (n, S, S, 3) uint8."""
        size = min(default_batch_size(self._device, "decode"), len(rows))
        blocks = (rows[first : first + size] for first in range(0, len(rows), size))
        return np.concatenate([self.begin(block, size)() for block in blocks])


def on_host(tensors: Mapping[str, torch.Tensor]) -> Callable[[], dict[str, np.ndarray]]:
    """Begin to copy tensors to the host. Returns a function that waits for them; any thread may call it."""
    event = None
    device = next((tensor.device for tensor in tensors.values() if tensor.is_cuda), None)
    if device is not None:
        with current_device(device):
            # Pinned memory comes from a pool, and returns to it when the array is deleted.
            tensors = {
                name: torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
                for name, tensor in tensors.items()
            }
            event = torch.cuda.Event()
            event.record()
    else:
        tensors = {name: tensor.cpu() for name, tensor in tensors.items()}  # of an Apple GPU: the host waits

    def fetch() -> dict[str, np.ndarray]:
        if event is not None:
            event.synchronize()
        return {name: tensor.numpy() for name, tensor in tensors.items()}

    return fetch
