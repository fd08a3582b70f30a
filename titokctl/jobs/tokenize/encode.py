"""One unit of a source becomes a part of a token cache: decode, cut the views, encode in tiles of a fixed size.

A GPU chooses its kernels by the shape of a batch, and kernels differ in the last bits. Tiles have one size, and the
unit alone decides which images a tile holds, so a row never depends on who else works, or when.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import PIL
import torch
from PIL import features

from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.data.images import to_float
from titokctl.data.pipeline import DecodedUnit, Decoder
from titokctl.data.sources import Source, Unit
from titokctl.data.views import view
from titokctl.formats.token_cache import PLAIN
from titokctl.formats.token_header import CacheHeader
from titokctl.formats.token_parts import TokenPart
from titokctl.models.device import default_batch_size, host_zeros, send
from titokctl.models.inference import kernels, prepared
from titokctl.models.precision import Precision, precision
from titokctl.models.titok.tokenizer import TiTok


def made_with(tile: int, precision_name: Precision, device: str) -> dict[str, Any]:
    """Return all that may change an id besides the weights and the preprocessing."""
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
    """Encodes pixels to ids, or to the latents of a Gaussian tokenizer, a tile at a time.

    Args:
        model: a tokenizer with float32 weights; it is not modified.
        header: of the cache that the rows are for. It names the type of a row and the views beside the plain one;
            its `made_with` names the precision and the number of images in a tile.
        device: where to encode.

    Attributes:
        squares: the preprocessing of each array that `rows` takes; the plain crop's comes first.
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
        """Return the rows of each view, "plain" included: (n, K) ids or (n, K, C) latents.

        The last tile is padded.

        Args:
            pixels: (n, S, S, 3) uint8 for each of `squares`.
            advance: called with the number of images after each tile.
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
        """Copy the rows of all tiles to the host; nothing else waits for the device."""
        if not tiles:
            return np.empty((0, *self.header.row_shape), self.header.row_dtype)
        return torch.cat(tiles).cpu().numpy().astype(self.header.row_dtype)

    def _images(self, pixels: np.ndarray) -> torch.Tensor:
        """Return (n, S, S, 3) uint8 pixels as a tile (tile, 3, S, S) in [0, 1], padded with black images."""
        # Planes, as `pixels` is laid out.
        padded = host_zeros((self.tile, 3, *pixels.shape[1:3]), torch.uint8, self._device).permute(0, 2, 3, 1)
        padded[: len(pixels)] = torch.from_numpy(pixels)
        return to_float(send(padded, self._device))


def tokenize_unit(
    source: Source,
    unit: Unit,
    encoder: TileEncoder,
    workers: int = 1,
    *,
    decoded: DecodedUnit | None = None,
    advance: Callable[[int], None] = lambda images: None,
) -> TokenPart:
    """Return the part of a token cache that belongs to one unit of a source.

    The part depends on the arguments `source`, `unit` and `encoder` alone: any process that sees the same files makes
    the same part. Nothing is written; `PartsFolder.write` does that.

    Args:
        source: the images, as `open_source` returns them.
        unit: one of `source.units`.
        encoder: the tokenizer, ready for the cache that the part is for.
        workers: how many images to decode at once.
        decoded: the pixels of the unit, where they were decoded ahead with the preprocessing `encoder.squares`.
        advance: called with the number of images after each encoded tile, and with that of the rejected ones.

    Raises UserError when the source changed or can't be read. A damaged image is listed in the part instead.
    """
    if decoded is None:
        with Decoder(source, encoder.squares, workers) as decoder:
            decoded = decoder.unit(unit)
    views = encoder.rows([decoded.pixels, *decoded.further], advance)
    advance(len(decoded.rejected))
    return TokenPart(
        unit=unit.index,
        first=unit.first,
        count=len(decoded.keys) + len(decoded.rejected),
        name=unit.name,
        ids=views.pop(PLAIN),
        labels=decoded.labels,
        keys=np.array([key.encode() for key in decoded.keys], dtype=None if decoded.keys else "S1"),
        views=views,
        rejected=[asdict(one) for one in decoded.rejected],
        state=unit.state,
        passed_over=dict(decoded.counts.passed_over),
        label_files=decoded.counts.label_files,
    )
