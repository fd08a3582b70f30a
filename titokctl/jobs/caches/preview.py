"""`titokctl preview`: rows of a cache as a picture, optionally below the images that they were made from."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from titokctl.context import Context
from titokctl.data.image_decoder import ImageDecoder
from titokctl.data.order import spread_positions
from titokctl.formats.picture import save_grid
from titokctl.formats.replacing import PNG, files_to_delete
from titokctl.formats.token_cache import PLAIN, TokenCache
from titokctl.formats.unfinished import Unfinished, check_output, finished_already
from titokctl.jobs.caches.rows import RECORDED, Originals, source_named, tokenizer_of
from titokctl.jobs.plan import WritePlan, cache_read
from titokctl.weights.hashes import weights_sha256

_COLUMNS = 8


@dataclass(frozen=True)
class Previewed:
    """The picture, and the rows in it, which are spread over the cache."""

    output: Path
    rows: list[int]
    view: str
    with_originals: bool


@dataclass(frozen=True)
class Preview:
    """Decode rows of a token cache into one PNG.

    Args:
        path: the token cache.
        output: the PNG.
        count: how many rows, at most.
        view: name of the view.
        source: the images that the cache was made from, to be drawn above their rows: a path, or "recorded" for the
            path that the cache records.
        tokenizer: what decodes the rows; None for the one with the recorded hash.
        overwrite: replace a file at `output`.
    """

    path: Path
    output: Path = Path("preview.png")
    count: int = 64
    view: str = PLAIN
    source: str | None = None
    tokenizer: str | None = None
    overwrite: bool = False

    def plan(self, context: Context) -> WritePlan:
        """Return what would be written.

        Raises UserError when the output exists, the tokenizer isn't found, or the source is another one.
        """
        work = _Work(self, context, may_store=False)
        finished = work.unfinished.is_finished(work.settings, self.overwrite)
        return WritePlan(
            reads=cache_read(work.cache, self.view),
            output=self.output,
            count=len(work.rows),
            done=len(work.rows) if finished else 0,
            settings={"with_originals": self.source is not None},
            removes=() if finished else files_to_delete(self.output),
        )

    def run(self, context: Context) -> Previewed:
        """Draw the picture. Raises as `plan`."""
        work = _Work(self, context)
        made = Previewed(self.output, work.rows.tolist(), self.view, self.source is not None)
        if work.unfinished.is_finished(work.settings, self.overwrite):
            context.say(finished_already(self.output))
            return made
        images = work.decoder.decoded(np.asarray(work.cache.view(self.view)[work.rows]))
        if work.originals is not None:
            images = _interleaved(work.originals.pixels(work.rows), images)
        with work.unfinished.at_once(work.settings) as product:
            save_grid(product, images, min(_COLUMNS, len(work.rows)))
        return made


class _Work:
    """Everything that a preview needs, opened and checked; nothing is downloaded or indexed unless `may_store`."""

    def __init__(self, request: Preview, context: Context, may_store: bool = True) -> None:
        check_output(request.output, request.overwrite, PNG)
        self.cache = cache = TokenCache.open_whole(request.path)
        cache.view(request.view)
        self.originals = None
        if request.source is not None:
            self.originals = Originals(
                cache, source_named(request.source, cache, context, may_store), request.source != RECORDED
            )
        tokenizer = tokenizer_of(cache, request.tokenizer, context, may_store)
        self.decoder = ImageDecoder(tokenizer, context.device, "float32")
        self.rows = spread_positions(len(cache), request.count)
        self.unfinished = Unfinished(request.output)
        self.settings = {
            "command": "preview",
            "cache": cache.sha256,
            "view": request.view,
            "rows": len(self.rows),
            "with_originals": request.source is not None,
            "weights_sha256": weights_sha256(tokenizer),
            "device": torch.device(context.device).type,
        }


def _interleaved(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Put each line of originals above the line of their reconstructions; fill incomplete lines with white."""
    columns = min(_COLUMNS, len(above))
    blank = np.full((-len(above) % columns, *above.shape[1:]), 255, np.uint8)
    lines = [np.concatenate([side, blank]).reshape(-1, columns, *above.shape[1:]) for side in (above, below)]
    return np.stack(lines, axis=1).reshape(-1, *above.shape[1:])
