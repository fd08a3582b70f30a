"""Pixels to ids in tiles of a fixed number of images, and the record of all that could change an id.

A GPU chooses its kernels by the shape of a batch, and kernels differ in the last bits: with tiles of one size and a
membership that only the unit decides, a row doesn't depend on what else is encoded when.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import PIL
import torch
from PIL import features

from titokctl.data.images import to_float
from titokctl.formats.token_cache import id_dtype
from titokctl.models.titok.tokenizer import TiTok

# Other views of the same crop: name -> (what it adds to the preprocessing record, what it does to (B, 3, S, S)).
VIEWS: dict[str, tuple[dict[str, Any], Callable[[torch.Tensor], torch.Tensor]]] = {
    "flip": ({"flip": True}, lambda images: images.flip(-1)),
}
_CPU_TILE = 16
_GPU_TILE = 128


def default_tile(device: str) -> int:
    """Images of a tile that keep `device` busy."""
    return _CPU_TILE if torch.device(device).type == "cpu" else _GPU_TILE


def made_with(tile: int, precision_name: str, device: str) -> dict[str, Any]:
    """All that may change an id besides the weights and the preprocessing."""
    return {
        "device": torch.device(device).type,
        "precision": precision_name,
        "tile": tile,
        "torch": torch.__version__,
        "pillow": PIL.__version__,
        "libjpeg": features.version_feature("libjpeg_turbo") or features.version_codec("jpg"),
        "libwebp": features.version_module("webp"),
    }


class TileEncoder:
    """Pixels to ids, a tile at a time.

    Args:
        model: a discrete tokenizer on `device`.
        views: names of VIEWS to make beside the plain one.
        tile: images of a tile; the last one of a call is padded.
        device: where the model is.
    """

    def __init__(self, model: TiTok, views: Sequence[str], tile: int, device: str) -> None:
        self._model, self._views, self._tile, self._device = model, tuple(views), tile, device
        self._dtype, self._k = id_dtype(model.config.codebook_size or 0), model.config.num_latent_tokens

    def ids(self, pixels: np.ndarray, advance: Callable[[int], None]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """(n, S, S, 3) uint8 -> ids (n, K), and the same of each view; `advance` is told of every finished tile."""
        plain = np.empty((len(pixels), self._k), self._dtype)
        views = {name: np.empty_like(plain) for name in self._views}
        for first in range(0, len(pixels), self._tile):
            rows = slice(first, min(first + self._tile, len(pixels)))
            images = self._images(pixels[rows])
            plain[rows] = self._tokenize(images, rows)
            for name, ids in views.items():
                ids[rows] = self._tokenize(VIEWS[name][1](images), rows)
            advance(rows.stop - rows.start)
        return plain, views

    def _images(self, pixels: np.ndarray) -> torch.Tensor:
        """(n, S, S, 3) uint8 -> (tile, 3, S, S) in [0, 1], black where there is no image."""
        padded = torch.zeros((self._tile, *pixels.shape[1:]), dtype=torch.uint8)
        padded[: len(pixels)] = torch.from_numpy(pixels)
        return to_float(padded.to(self._device))

    def _tokenize(self, images: torch.Tensor, rows: slice) -> np.ndarray:
        return self._model.tokenize(images)[: rows.stop - rows.start].cpu().numpy()
