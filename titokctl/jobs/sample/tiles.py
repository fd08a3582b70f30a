"""One tile of a sample set: its ids are drawn, decoded to images, and their features are computed, on one device."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from titokctl.data.image_decoder import on_host
from titokctl.distributed.stop import StopRequest
from titokctl.evaluation.extractors import Extractor
from titokctl.evaluation.features import extract_all, extract_on_device
from titokctl.formats.image_output import Rows
from titokctl.formats.sample_set import SHOWN, shown_positions
from titokctl.formats.token_header import id_dtype
from titokctl.jobs.sample.inputs import Networks, SampleTask
from titokctl.models.generator import Known
from titokctl.models.noise import KeyedNoise
from titokctl.models.precision import precision
from titokctl.sampling.plan import Tile


@dataclass(frozen=True)
class DrawnPiece:
    """Images `first` to `first + count - 1` of a set; `rows` waits for them."""

    first: int
    count: int
    rows: Callable[[], Rows]


class TileDrawer:
    """Draws tiles of a sample set in this process.

    Args:
        task: the set; tiles depend on it, on the networks and on the kind of device alone.
        networks: those of the task, on its device.
        extractor: computes the features of every image; None for no features.
    """

    def __init__(self, task: SampleTask, networks: Networks, extractor: Extractor | None = None) -> None:
        self._task, self._networks, self._extractor = task, networks, extractor
        self._shown = shown_positions(task.spec().labels)

    def pieces(self, tile: Tile, known: Known | None) -> Iterator[DrawnPiece]:
        """Yield the images of a tile, `batch_size` at a time; ids under the mask of `known` are kept."""
        task, indices = self._task, tile.image_indices(self._task.device)
        with precision(task.precision, task.device):
            ids = as_kept(self._ids(indices, known))
        for start in range(0, tile.count, task.batch_size):
            part = ids[start : start + task.batch_size]
            count = min(len(part), tile.count - start)  # the surplus rows of the tile are dropped
            yield DrawnPiece(tile.first + start, count, self._rows(tile.first + start, part, count))

    def _ids(self, indices: torch.Tensor, known: Known | None) -> torch.Tensor:
        """Draw the ids (B, K) of the images with these numbers (B,) int64, on their device."""
        sampling, generator = self._task.sampling, self._networks.generator
        noise, labels = KeyedNoise(sampling.seed, indices), self._task.plan.labels(indices)
        if known is None:
            return generator.sample(labels, sampling, noise)
        on_device = Known(known.ids.to(indices.device), known.mask.to(indices.device), known.count)
        return generator.complete(labels, sampling, noise, on_device)

    def _rows(self, first: int, ids: torch.Tensor, count: int) -> Callable[[], Rows]:
        """Begin to make the rows of `count` images. Returns a function that waits for them."""
        task, extractor = self._task, self._extractor
        dtype = np.dtype("<f2") if ids.is_floating_point() else id_dtype(task.tokenizer.config.codebook_size)
        wanted = {"ids": ids[:count]}
        is_shown = bool(((self._shown >= first) & (self._shown < first + count)).any())
        if task.image_format != "none" or is_shown or extractor is not None:
            wanted["images"] = self._networks.decoder.images(ids)[:count]
        on_device = extract_on_device(extractor, wanted["images"]) if extractor and wanted["images"].is_cuda else {}
        fetch = on_host(wanted | {f"features {name}": values for name, values in on_device.items()})
        features = extract_all(extractor, [fetch()["images"]]) if extractor and not on_device else {}

        def rows() -> Rows:
            found = fetch()
            images = found.get("images")
            arrays = features | {name: found[f"features {name}"] for name in on_device}
            if images is not None and is_shown:
                arrays[SHOWN] = images
            return Rows(found["ids"].astype(dtype), images, arrays)

        return rows


class TileMaker(Protocol):
    """A way to draw the tiles of a sample set."""

    def drawn(self, tiles: Iterator[Tile], stop: StopRequest) -> Iterator[tuple[Tile, Iterable[DrawnPiece]]]:
        """Yield every tile with its pieces, in the order in which they become finished; may end early after a signal.

        `tiles` is asked for the next tile when that can be begun. Raises UserError when a tile can't be drawn.
        """


@dataclass(frozen=True)
class LocalTiles:
    """Draws tiles in this process."""

    task: SampleTask
    networks: Networks
    extractor: Extractor | None = None

    def drawn(self, tiles: Iterator[Tile], stop: StopRequest) -> Iterator[tuple[Tile, Iterable[DrawnPiece]]]:
        drawer = TileDrawer(self.task, self.networks, self.extractor)
        for tile in tiles:
            yield tile, drawer.pieces(tile, self.task.known(tile.image_indices(self.task.device)))


def as_kept(drawn: torch.Tensor) -> torch.Tensor:
    """Return ids, or latents rounded as ids.h5 holds them, so that decoding it again gives the same images."""
    return drawn.half().float() if drawn.is_floating_point() else drawn
