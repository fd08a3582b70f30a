"""What every process of a tokenize job does: take a unit, decode it, encode it, write its part, take the next one.

The next unit is decoded while this one is encoded, and parts are written by a thread of their own.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import asdict, dataclass

import numpy as np

from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.data.pipeline import DecodedUnit, Decoder
from titokctl.data.sources import Source, Unit
from titokctl.distributed.stop import StopRequest
from titokctl.formats.token_parts import PartsFolder, TokenPart
from titokctl.jobs.tile_encoder import TileEncoder

SAVED = "finished parts are kept."
_LOOK_EVERY_S = 0.2


@dataclass
class UnitWork:
    """One process's share of the work.

    Args:
        workers: how many images are decoded at once.
        advance: told of every finished image, with a row or without.
        stop: looked at between tiles; the unit in hand is then dropped.
    """

    source: Source
    preprocessing: PreprocessingConfig
    encoder: TileEncoder
    folder: PartsFolder
    workers: int
    advance: Callable[[int], None]
    stop: StopRequest

    def run(self, units: Iterator[Unit], written: Callable[[int], None] = lambda unit: None) -> None:
        """Make the parts of `units`; `written` is told the number of each when it is on the disk.

        `units` is asked for the next one while one is being encoded. Raises Stopped after a signal.
        """
        pending: Future[None] | None = None
        configs = [self.preprocessing, *self.encoder.squares]
        with (
            ThreadPoolExecutor(1, thread_name_prefix="write") as writer,
            Decoder(self.source, configs, self.workers) as decoder,
            closing(self._decoded(units, decoder)) as decoded,  # type: ignore[type-var]
        ):
            for unit, images in decoded:
                self.stop.check(SAVED)
                part = self._part(unit, images)
                if pending is not None:
                    pending.result()
                pending = writer.submit(self._write, part, written)
                self.advance(len(part.rejected))
            if pending is not None:
                pending.result()
        self.stop.check(SAVED)

    def _decoded(self, units: Iterator[Unit], decoder: Decoder) -> Iterator[tuple[Unit, DecodedUnit]]:
        with ThreadPoolExecutor(1, thread_name_prefix="ahead") as pool:
            ahead = pool.submit(self._next, units, decoder)
            while (found := self._result(ahead)) is not None:
                ahead = pool.submit(self._next, units, decoder)
                yield found

    def _next(self, units: Iterator[Unit], decoder: Decoder) -> tuple[Unit, DecodedUnit] | None:
        unit = None if self.stop.requested else next(units, None)
        return None if unit is None else (unit, decoder.unit(unit))

    def _result(self, ahead: "Future[tuple[Unit, DecodedUnit] | None]") -> tuple[Unit, DecodedUnit] | None:
        while not wait([ahead], _LOOK_EVERY_S).done:
            self.stop.check(SAVED)
        return ahead.result()

    def _part(self, unit: Unit, decoded: DecodedUnit) -> TokenPart:
        ids, views = self.encoder.rows(decoded.pixels, decoded.further, self._tile_done)
        keys = np.array([key.encode() for key in decoded.keys], dtype=None if decoded.keys else "S1")
        rejected = [asdict(one) for one in decoded.rejected]
        count = unit.count if self.source.can_seek else len(ids) + len(rejected)
        return TokenPart(unit.index, unit.first, count, unit.name, ids, decoded.labels, keys, views, rejected)

    def _tile_done(self, images: int) -> None:
        self.advance(images)
        self.stop.check(SAVED)

    def _write(self, part: TokenPart, written: Callable[[int], None]) -> None:
        self.folder.write(part)
        written(part.unit)
