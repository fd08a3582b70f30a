"""Parts made by this process: the next unit is decoded while one is encoded, and parts are written by a thread."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

from titokctl.context import Context
from titokctl.data.pipeline import DecodedUnit, Decoder
from titokctl.data.sources import Source, Unit
from titokctl.distributed.place import available_cores
from titokctl.formats.token_parts import TokenPart
from titokctl.jobs.tokenize.encode import TileEncoder, tokenize_unit

SAVED = "The finished parts are kept."
_CHECK_EVERY_S = 0.2


class PartMaker(Protocol):
    """A way to make the parts of a token cache."""

    def make(
        self,
        units: Iterator[Unit],
        write: Callable[[TokenPart], None],
        advance: Callable[[int], None],
        context: Context,
    ) -> None:
        """Make and write the parts of `units`, which is asked for the next one when it can be begun.

        Raises UserError when a unit can't be read, and Stopped after a signal.

        Args:
            write: writes one part.
            advance: called with the number of images that were tokenized or rejected since.
        """


@dataclass(frozen=True)
class LocalParts:
    """Makes parts in this process.

    Args:
        source: the images.
        encoder: the tokenizer, ready for the cache.
        workers: how many images to decode at once; None for this process's share of the cores.
    """

    source: Source
    encoder: TileEncoder
    workers: int | None

    def make(
        self,
        units: Iterator[Unit],
        write: Callable[[TokenPart], None],
        advance: Callable[[int], None],
        context: Context,
    ) -> None:
        # Two threads at least: with one, decoding would wait for the encoder.
        workers = self.workers or max(available_cores() // context.group.world_size, 2)
        pending: Future[None] | None = None

        def advanced(images: int) -> None:
            context.stop.check(SAVED)
            advance(images)

        with (
            ThreadPoolExecutor(1, thread_name_prefix="write") as writer,
            Decoder(self.source, self.encoder.squares, workers) as decoder,
            closing(self._decoded(units, decoder, context)) as decoded,  # type: ignore[type-var]
        ):
            for unit, images in decoded:
                context.stop.check(SAVED)
                settings = self.encoder.settings
                part = tokenize_unit(self.source, unit, self.encoder, settings, decoded=images, advance=advanced)
                if pending is not None:
                    pending.result()
                pending = writer.submit(write, part)
            if pending is not None:
                pending.result()

    def _decoded(self, units: Iterator[Unit], decoder: Decoder, context: Context) -> Iterator[tuple[Unit, DecodedUnit]]:
        def following() -> tuple[Unit, DecodedUnit] | None:
            unit = None if context.stop.requested else next(units, None)
            return None if unit is None else (unit, decoder.unit(unit))

        with ThreadPoolExecutor(1, thread_name_prefix="ahead") as pool:
            ahead = pool.submit(following)
            while True:
                while not wait([ahead], _CHECK_EVERY_S).done:
                    context.stop.check(SAVED)
                if (found := ahead.result()) is None:
                    return
                ahead = pool.submit(following)
                yield found
