"""One unit of a source becomes a part of a token cache: decode, cut the views, encode in tiles of a fixed size.

A GPU chooses its kernels by the shape of a batch, and kernels differ in the last bits. Tiles have one size, and the
unit alone decides which images a tile holds, so a row never depends on who else works, or when.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import PIL
import torch
from PIL import features

from titokctl import __version__
from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.data.images import to_float
from titokctl.data.pipeline import DecodedUnit, Decoder
from titokctl.data.sources import Source, Unit
from titokctl.data.views import View, view
from titokctl.errors import UsageError
from titokctl.formats.token_cache import PLAIN
from titokctl.formats.token_header import CacheHeader, id_dtype
from titokctl.formats.token_parts import TokenPart
from titokctl.models.device import default_batch_size, host_zeros, send
from titokctl.models.inference import check_infers, encoding_precision, kernels, prepared
from titokctl.models.precision import PRECISIONS, Precision, precision
from titokctl.models.titok.tokenizer import TiTok
from titokctl.weights.hashes import encoder_sha256, weights_sha256


def made_with(tile: int, precision_name: Precision, device: str) -> dict[str, Any]:
    """Return all that may change an id besides the weights and the preprocessing.

    Pillow itself decodes BMP and GIF; PNG has no freedom.
    """
    return {
        "device": torch.device(device).type,
        "precision": precision_name,
        "kernels": kernels(device, precision_name),
        "tile": tile,
        "torch": torch.__version__,
        "pillow": PIL.__version__,
        "libjpeg": features.version_feature("libjpeg_turbo") or features.version_codec("jpg"),
        "libwebp": features.version_module("webp"),
        "libtiff": features.version_codec("libtiff"),
        "libavif": features.version_module("avif") if "avif" in features.modules else None,  # Pillow 11.3 and newer
    }


def settings_here(batch_size: int | None, precision: Precision | None, device: str) -> dict[str, Any]:
    """Return all that may change an id, on the machine that calls this. Raises UsageError for a wrong precision."""
    tile = batch_size or default_batch_size(device, "encode")
    return made_with(tile, checked_precision(precision, device), device)


def checked_precision(wanted: Precision | None, device: str) -> Precision:
    """Return the precision to encode in; None for the default of the device. Raises UsageError if it can't do that."""
    name = wanted or encoding_precision(device)
    if name not in PRECISIONS:
        raise UsageError(f"unknown precision {name!r}", f"one of: {', '.join(PRECISIONS)}")
    check_infers(device, name)
    return name


@dataclass(frozen=True)
class UnitSettings:
    """All that decides about the rows of a unit, besides its images and the tokenizer.

    Args:
        preprocessing: of the plain crop; None for the center crop at the tokenizer's image size.
        views: names of the further views, as `views.names_of` returns them.
        precision: of the encoder.
        tile: number of images in a tile; None for what suits the device. On a CPU the ids don't depend on it.
        device: where to encode: "cpu", "cuda" or "cuda:<n>". Devices of one kind make the same rows.
    """

    preprocessing: PreprocessingConfig | None = None
    views: tuple[str, ...] = ("flip",)
    precision: Precision = "float32"
    tile: int | None = None
    device: str = "cpu"

    @classmethod
    def of(cls, header: CacheHeader, device: str) -> "UnitSettings":
        """Return the settings that the header of a cache records, for this device."""
        made_with, preprocessing = header.made_with, PreprocessingConfig.model_validate(header.preprocessing)
        tile = int(made_with.get("tile", default_batch_size("cpu", "encode")))
        return cls(preprocessing, tuple(header.views), made_with.get("precision", "float32"), tile, device)

    def all_views(self, image_size: int) -> dict[str, View]:
        """Return the views by name, the plain one first, for a tokenizer of this image size."""
        plain = self.preprocessing or PreprocessingConfig(size=image_size)
        return {name: view(name, plain) for name in (PLAIN, *self.views)}

    def squares(self, image_size: int) -> list[PreprocessingConfig]:
        """Return the preprocessing of each square that the views are cut from; the plain crop's comes first."""
        return list(dict.fromkeys(one.square for one in self.all_views(image_size).values()))


def header_of(
    model: TiTok,
    settings: UnitSettings,
    makers: Mapping[str, Any],
    source: Mapping[str, Any],
    class_names: Sequence[str] = (),
    terms: str = "",
) -> CacheHeader:
    """Return the header of a cache.

    Args:
        model: the tokenizer, with float32 weights.
        settings: of the rows.
        makers: as `made_with` returns it, of a machine that makes rows.
        source: the record of the images' origin, JSON values.
        class_names: by label.
        terms: terms of use of the images.
    """
    config = model.config
    plain, *further = settings.all_views(config.image_size).items()
    return CacheHeader(
        tokenizer=config.model_dump(mode="json"),
        encoder_sha256=encoder_sha256(model),
        weights_sha256=weights_sha256(model),
        codebook_size=(config.codebook_size or 0) if config.is_discrete else 0,
        num_latent_tokens=config.num_latent_tokens,
        image_size=config.image_size,
        preprocessing=plain[1].square.model_dump(mode="json"),
        source=json.loads(json.dumps(source)),
        views={name: one.record for name, one in further},
        class_names=tuple(class_names),
        created_by=f"titokctl {__version__}",
        made_with=dict(makers),
        token_size=0 if config.is_discrete else config.token_size,
        terms=terms,
    )


class TileEncoder:
    """A tokenizer that encodes pixels to ids, or to the latents of a Gaussian tokenizer, a tile at a time.

    Args:
        model: a tokenizer with float32 weights; it is not modified. Its weights are copied where the precision asks
            for that, so one encoder should serve many units.
        settings: of the rows.

    Attributes:
        squares: the preprocessing of each array that `rows` takes; the plain crop's comes first.
    """

    def __init__(self, model: TiTok, settings: UnitSettings) -> None:
        config, self.settings = model.config, settings
        self.tile = settings.tile or default_batch_size(settings.device, "encode")
        self._model = prepared(model, settings.device, settings.precision, "encoder")
        self._views = settings.all_views(config.image_size)
        self.squares = settings.squares(config.image_size)
        size = () if config.is_discrete else (config.token_size,)
        self._row_shape = (config.num_latent_tokens, *size)
        self._row_dtype = id_dtype(config.codebook_size or 0) if config.is_discrete else np.dtype("<f2")

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
        with precision(self.settings.precision, self.settings.device):
            return self._model.tokenize_unchecked(images)

    def _gathered(self, tiles: list[torch.Tensor]) -> np.ndarray:
        """Copy the rows of all tiles to the host; nothing else waits for the device."""
        if not tiles:
            return np.empty((0, *self._row_shape), self._row_dtype)
        return torch.cat(tiles).cpu().numpy().astype(self._row_dtype)

    def _images(self, pixels: np.ndarray) -> torch.Tensor:
        """Return (n, S, S, 3) uint8 pixels as a tile (tile, 3, S, S) in [0, 1], padded with black images."""
        # Planes, as `pixels` is laid out.
        device = self.settings.device
        padded = host_zeros((self.tile, 3, *pixels.shape[1:3]), torch.uint8, device).permute(0, 2, 3, 1)
        padded.numpy()[: len(pixels)] = pixels
        return to_float(send(padded, device))


def tokenize_unit(
    source: Source,
    unit: Unit,
    tokenizer: TiTok | TileEncoder,
    settings: UnitSettings,
    workers: int = 1,
    *,
    decoded: DecodedUnit | None = None,
    advance: Callable[[int], None] = lambda images: None,
) -> TokenPart:
    """Return the part of a token cache that belongs to one unit of a source.

    The part depends on `source`, `unit`, `tokenizer` and `settings` alone: every process that sees the same files, on
    the same kind of device, makes the same bytes (`TokenPart.sha256`). Nothing is written; `PartsFolder.write` does
    that. All ways to make a token cache call this function.

    Args:
        source: the images, as `open_source` returns them.
        unit: one of `source.units`.
        tokenizer: the tokenizer, or `TileEncoder(tokenizer, settings)`, which is prepared once for many units.
        settings: of the rows.
        workers: how many images to decode at once.
        decoded: the pixels of the unit, if they were decoded ahead with the preprocessing `TileEncoder.squares`.
        advance: called with the number of images after each encoded tile, and with that of the rejected ones.

    Raises UserError when the source changed or can't be read, and ValueError for an encoder of other settings. A
    damaged image is listed in the part instead.
    """
    encoder = tokenizer if isinstance(tokenizer, TileEncoder) else TileEncoder(tokenizer, settings)
    if encoder.settings != settings:
        raise ValueError(f"the encoder was prepared with {encoder.settings}, not with {settings}")
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
