"""`titokctl preview`: rows of a cache as pictures, on request beside the images they were made of."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from titokctl.data.image_decoder import ImageDecoder
from titokctl.data.sources import open_source
from titokctl.dry_run import about_to_write, is_dry_run
from titokctl.errors import UserError
from titokctl.formats.picture import save_grid
from titokctl.formats.token_cache import PLAIN, TokenCache
from titokctl.jobs.caches.rows import Originals, tokenizer_of
from titokctl.jobs.plan import WritePlan, cache_read
from titokctl.progress import Progress

_COLUMNS = 8


@dataclass(frozen=True)
class Preview:
    """The picture, and the rows in it: evenly spread over the cache."""

    output: Path
    rows: list[int]
    view: str
    with_originals: bool


def preview(
    path: Path,
    output: Path,
    runs: Path,
    *,
    count: int = 64,
    view: str = PLAIN,
    source: str | None = None,
    recorded_source: bool = False,
    tokenizer: str | None = None,
    overwrite: bool = False,
    device: str = "cpu",
    progress: Progress,
) -> Preview:
    """Draw `count` rows of the cache at `path` into the PNG `output`.

    Args:
        source: where the images are that the cache was made of; each then stands above its row.
        recorded_source: take the place that the cache names.

    Raises UserError when the output exists, the tokenizer is not here, or the source is another one.
    """
    if output.exists() and not overwrite:
        raise UserError(f"{output} exists already", "choose another -o, or replace it with --overwrite")
    cache = TokenCache.open(path)
    cached = cache.view(view)
    wanted = source is not None or recorded_source
    given = None if source is None else open_source([source], keep_index=not is_dry_run())
    originals = Originals(cache, given) if wanted else None
    decoder = ImageDecoder(tokenizer_of(cache, tokenizer, runs, device, progress.say), device, "float32")
    rows = np.unique(np.linspace(0, len(cache) - 1, min(count, len(cache))).round().astype(np.int64))
    about_to_write(
        lambda: WritePlan(
            reads=cache_read(cache, view),
            output=output,
            count=len(rows),
            settings={"with_originals": wanted},
            replaces=output.exists(),
            makes_folders=False,
        )
    )
    images = decoder.decoded(np.asarray(cached[rows]))
    if originals is not None:
        images = _interleaved(originals.pixels(rows), images)
    save_grid(output, images, min(_COLUMNS, len(rows)))
    return Preview(output, rows.tolist(), view, wanted)


def _interleaved(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Lines of originals, each over the line of its reconstructions; lines are filled up with white."""
    columns = min(_COLUMNS, len(above))
    blank = np.full((-len(above) % columns, *above.shape[1:]), 255, np.uint8)
    lines = [np.concatenate([side, blank]).reshape(-1, columns, *above.shape[1:]) for side in (above, below)]
    return np.stack(lines, axis=1).reshape(-1, *above.shape[1:])
