"""What every process of a `sample` command does: take a tile, draw its ids, decode them, hand them to the writer."""

import time
from collections.abc import Callable, Iterator

import torch

from titokctl.distributed.stop import StopRequest
from titokctl.evaluation.extractors import Extractor
from titokctl.evaluation.features import extract_all
from titokctl.formats.chunk_writer import Rows
from titokctl.formats.sample_set_writer import NUM_SHOWN, SHOWN, SampleSetWriter
from titokctl.formats.token_header import id_dtype
from titokctl.jobs.image_decoder import on_host
from titokctl.jobs.sample_record import SampleTask
from titokctl.models.precision import precision
from titokctl.sampling.decoding import decode_ids
from titokctl.sampling.plan import Tile

_CHUNK_IMAGES = 256
_CHUNK_SECONDS = 30.0


class SampleWork:
    """One process's part in drawing a set.

    Args:
        advance: told of every image that was handed to the writer.
        stop: looked at between tiles; all that was drawn is then committed.
        saved: says in one sentence what is kept.
        extractor: whose features of every image go to the writer too.
    """

    def __init__(
        self,
        task: SampleTask,
        writer: SampleSetWriter,
        advance: Callable[[int], None],
        stop: StopRequest,
        saved: Callable[[], str],
        extractor: Extractor | None = None,
    ) -> None:
        self._task, self._writer = task, writer
        self._advance, self._stop, self._saved = advance, stop, saved
        self._extractor = extractor

    def run(self, tiles: Iterator[Tile]) -> int:
        """Draw `tiles`; returns the number of images, all of them committed. Raises Stopped after a signal."""
        drawn, committed = 0, time.monotonic()
        for tile in tiles:
            for first, count, rows in self._pieces(tile):
                self._writer.add(first, count, rows)
            drawn += tile.count
            self._advance(tile.count)
            waited = time.monotonic() - committed
            if self._writer.num_pending >= _CHUNK_IMAGES or waited >= _CHUNK_SECONDS or self._stop.requested:
                self._writer.commit(wait=self._stop.requested)
                committed = time.monotonic()
            if self._stop.requested:
                self._stop.check(self._saved())
        self._writer.commit()
        return drawn

    def _pieces(self, tile: Tile) -> Iterator[tuple[int, int, Callable[[], Rows]]]:
        """(first index, number of images, their rows); the surplus rows of the tile are dropped."""
        task = self._task
        indices = tile.image_indices(task.device)
        with precision(task.precision, task.device):
            ids = decode_ids(task.networks.generator, task.plan.labels(indices), task.settings.sampling, indices)
        for start in range(0, tile.count, task.batch_size):
            part = ids[start : start + task.batch_size]
            kept = min(len(part), tile.count - start)
            yield tile.first + start, kept, self._rows(tile.first + start, part, kept)

    def _rows(self, first: int, ids: torch.Tensor, kept: int) -> Callable[[], Rows]:
        """Begin to make the rows of `kept` images; what is returned waits for them."""
        task, dtype = self._task, id_dtype(self._task.tokenizer.config.codebook_size)
        wanted = {"ids": ids[:kept]}
        if task.image_format != "none" or first < NUM_SHOWN or self._extractor is not None:
            wanted["images"] = task.networks.decoder.images(ids)[:kept]
        fetch = on_host(wanted)
        features = extract_all(self._extractor, [fetch()["images"]]) if self._extractor is not None else {}

        def rows() -> Rows:
            found = fetch()
            images = found.get("images")
            arrays = features if images is None or first >= NUM_SHOWN else {**features, SHOWN: images}
            return Rows(found["ids"].astype(dtype), images, arrays)

        return rows
