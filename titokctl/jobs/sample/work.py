"""What every process of a `sample` command does: take a tile, draw its ids, decode them, hand them to the writer."""

import time
from collections.abc import Callable, Iterable

import torch

from titokctl.data.image_decoder import on_host
from titokctl.distributed.stop import StopRequest
from titokctl.evaluation.extractors import Extractor
from titokctl.evaluation.features import extract_all
from titokctl.formats.chunk_writer import Rows
from titokctl.formats.sample_set_writer import NUM_SHOWN, SHOWN, SampleSetWriter
from titokctl.formats.token_header import id_dtype
from titokctl.jobs.sample.record import SampleTask
from titokctl.models.precision import precision
from titokctl.sampling.decoding import decode_ids
from titokctl.sampling.plan import Tile

_CHUNK_IMAGES = 256
_CHUNK_SECONDS = 30.0


def draw(
    task: SampleTask,
    writer: SampleSetWriter,
    tiles: Iterable[Tile],
    advance: Callable[[int], None],
    stop: StopRequest,
    saved: Callable[[], str],
    extractor: Extractor | None = None,
) -> None:
    """Draw `tiles` and commit all their images. Raises Stopped after a signal.

    Args:
        advance: told of every image that was handed to the writer.
        stop: looked at between tiles; all that was drawn is then committed.
        saved: says in one sentence what is kept.
        extractor: whose features of every image go to the writer too.
    """
    committed = time.monotonic()
    for tile in tiles:
        indices = tile.image_indices(task.device)
        with precision(task.precision, task.device):
            ids = decode_ids(task.networks.generator, task.plan.labels(indices), task.sampling, indices)
        for start in range(0, tile.count, task.batch_size):
            part = ids[start : start + task.batch_size]
            kept = min(len(part), tile.count - start)  # the surplus rows of the tile are dropped
            writer.add(tile.first + start, kept, _rows(task, tile.first + start, part, kept, extractor))
        waited = time.monotonic() - committed
        if writer.num_pending >= _CHUNK_IMAGES or waited >= _CHUNK_SECONDS or stop.requested:
            writer.commit(wait=stop.requested)
            committed = time.monotonic()
        if stop.requested:
            stop.check(saved())
        advance(tile.count)
    writer.commit()
    if stop.requested:  # while the last images were on their way to the disk
        stop.check(saved())


def _rows(
    task: SampleTask, first: int, ids: torch.Tensor, kept: int, extractor: Extractor | None
) -> Callable[[], Rows]:
    """Begin to make the rows of `kept` images; what is returned waits for them."""
    dtype = id_dtype(task.tokenizer.config.codebook_size)
    wanted = {"ids": ids[:kept]}
    if task.image_format != "none" or first < NUM_SHOWN or extractor is not None:
        wanted["images"] = task.networks.decoder.images(ids)[:kept]
    fetch = on_host(wanted)
    features = extract_all(extractor, [fetch()["images"]]) if extractor is not None else {}

    def rows() -> Rows:
        found = fetch()
        images = found.get("images")
        arrays = features if images is None or first >= NUM_SHOWN else {**features, SHOWN: images}
        return Rows(found["ids"].astype(dtype), images, arrays)

    return rows
