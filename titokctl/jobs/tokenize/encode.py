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

from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.data.images import to_float
from titokctl.data.views import view
from titokctl.formats.token_cache import PLAIN
from titokctl.formats.token_header import CacheHeader
from titokctl.models.device import default_batch_size
from titokctl.models.inference import kernels, prepared
from titokctl.models.precision import Precision, precision
from titokctl.models.titok.tokenizer import TiTok


def made_with(tile: int, precision_name: Precision, device: str) -> dict[str, Any]:
    """All that may change an id besides the weights and the preprocessing."""
    return {
        "device": torch.device(device).type,
        "precision": precision_name,
        "kernels": kernels(device, precision_name),
        "tile": tile,
        "torch": torch.__version__,
        "pillow": PIL.__version__,
        "libjpeg": features.version_feature("libjpeg_turbo") or features.version_codec("jpg"),
        "libwebp": features.version_module("webp"),
    }


class TileEncoder:
    """Pixels to ids, or to the latents of a Gaussian tokenizer, a tile at a time.

    Args:
        model: a tokenizer with float32 weights; it stays as it is.
        header: of the cache the rows are for. It says their type, the views to make beside the plain one, and in
            `made_with` the precision and the images of a tile (the last one of a call is padded).
        device: where it runs.

    Attributes:
        squares: the preprocessing of what `rows` takes; the plain crop's comes first.
    """

    def __init__(self, model: TiTok, header: CacheHeader, device: str) -> None:
        self.header = header
        self.tile = int(header.made_with.get("tile", default_batch_size("cpu", "encode")))
        self._precision, self._device = header.made_with.get("precision", "float32"), device
        self._model = prepared(model, device, self._precision, "encoder")
        plain = PreprocessingConfig.model_validate(header.preprocessing)
        self._views = {name: view(name, plain) for name in (PLAIN, *header.views)}
        self.squares = list(dict.fromkeys(one.square for one in self._views.values()))

    def rows(self, pixels: Sequence[np.ndarray], advance: Callable[[int], None]) -> dict[str, np.ndarray]:
        """The rows of each view, "plain" among them: (n, K) ids or (n, K, C) latents.

        Args:
            pixels: (n, S, S, 3) uint8 for each of `squares`.
            advance: told of every finished tile.
        """
        tiles: dict[str, list[torch.Tensor]] = {name: [] for name in self._views}
        for first in range(0, len(pixels[0]), self.tile):
            count = min(self.tile, len(pixels[0]) - first)
            squares = {s: self._images(of[first : first + count]) for s, of in zip(self.squares, pixels, strict=True)}
            for name, one in self._views.items():
                tiles[name].append(self._encoded(one.cut(squares[one.square]))[:count])
            advance(count)
        return {name: self._gathered(found) for name, found in tiles.items()}

    def _encoded(self, images: torch.Tensor) -> torch.Tensor:
        with precision(self._precision, self._device):
            return self._model.tokenize_unchecked(images)

    def _gathered(self, tiles: list[torch.Tensor]) -> np.ndarray:
        """The rows of all tiles on the host: the one place that waits for the device."""
        if not tiles:
            return np.empty((0, *self.header.row_shape), self.header.row_dtype)
        return torch.cat(tiles).cpu().numpy().astype(self.header.row_dtype)

    def _images(self, pixels: np.ndarray) -> torch.Tensor:
        """(n, S, S, 3) uint8 -> (tile, 3, S, S) in [0, 1], black where there is no image."""
        # Laid out as `pixels`; pinned memory lets the copy run beside the device's work on the tile before.
        pinned = torch.device(self._device).type == "cuda"
        padded = torch.zeros((self.tile, 3, *pixels.shape[1:3]), dtype=torch.uint8, pin_memory=pinned)
        padded = padded.permute(0, 2, 3, 1)
        padded[: len(pixels)] = torch.from_numpy(pixels)
        return to_float(padded.to(self._device, non_blocking=True))
