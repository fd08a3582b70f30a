"""What every process of a tokenize job does: take a unit, decode it, encode it, write its part, take the next one.

The next unit is decoded while this one is encoded, and parts are written by a thread of their own. Processes of a group
take units through its store; jobs that share none claim them through files.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import asdict, dataclass

import numpy as np

from titokctl.data.pipeline import DecodedUnit, Decoder
from titokctl.data.sources import Source, Unit
from titokctl.distributed.stop import StopRequest
from titokctl.errors import UsageError
from titokctl.formats.token_cache import PLAIN
from titokctl.formats.token_parts import PartsFolder, TokenPart
from titokctl.formats.unit_claims import UnitClaims
from titokctl.jobs.tokenize.encode import TileEncoder

SAVED = "finished parts are kept."
_LOOK_AHEAD_EVERY_S, _LOOK_FOR_CLAIMS_EVERY_S = 0.2, 1.0


def parse_part(text: str) -> tuple[int, int]:
    """`--part i/n`, i counted from 0 or from 1, as (i, n). Raises UsageError for anything else."""
    number, _, of = text.partition("/")
    if not (number.isdigit() and of.isdigit() and 0 <= int(number) <= int(of) and int(of) > 0):
        raise UsageError(f"--part {text!r} is not i/n", "e.g. --part 3/8 for the third of eight jobs")
    return int(number), int(of)


def in_turn(part: str, units: list[int]) -> list[int]:
    """`units` in the order of the job `part`: from the i-th of n shares on, then those of the others."""
    number, of = parse_part(part)
    first = (number % of) * len(units) // of
    return units[first:] + units[:first]


def claimed(claims: UnitClaims, folder: PartsFolder, order: list[int], stop: StopRequest) -> Iterator[int]:
    """The next units that are not finished and that no living job has claimed, until all others are in good hands."""
    while True:
        stop.check(SAVED)
        finished = folder.finished()
        order = [unit for unit in order if unit not in finished]
        took = 0
        for unit in order:
            if claims.take(unit):
                if folder.place(unit).exists():
                    claims.release(unit)
                    continue
                took += 1
                yield unit
        if not order or (not took and claims.others_at_work()):
            return
        if not took:
            time.sleep(_LOOK_FOR_CLAIMS_EVERY_S)


@dataclass
class UnitWork:
    """One process's share of the work.

    Args:
        workers: how many images are decoded at once.
        advance: told of every finished image, with a row or without.
        stop: looked at between tiles; the unit in hand is then dropped.
    """

    source: Source
    encoder: TileEncoder
    folder: PartsFolder
    workers: int
    advance: Callable[[int], None]
    stop: StopRequest

    def run(self, units: Iterator[int], written: Callable[[int], None] = lambda unit: None) -> None:
        """Make the parts of `units`; `written` is told the number of each when it is on the disk.

        `units` is asked for the next one while one is being encoded. Raises Stopped after a signal.
        """
        pending: Future[None] | None = None
        with (
            ThreadPoolExecutor(1, thread_name_prefix="write") as writer,
            Decoder(self.source, self.encoder.squares, self.workers) as decoder,
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

    def _decoded(self, units: Iterator[int], decoder: Decoder) -> Iterator[tuple[Unit, DecodedUnit]]:
        def following() -> tuple[Unit, DecodedUnit] | None:
            number = None if self.stop.requested else next(units, None)
            return None if number is None else (self.source.units[number], decoder.unit(self.source.units[number]))

        with ThreadPoolExecutor(1, thread_name_prefix="ahead") as pool:
            ahead = pool.submit(following)
            while True:
                while not wait([ahead], _LOOK_AHEAD_EVERY_S).done:
                    self.stop.check(SAVED)
                if (found := ahead.result()) is None:
                    return
                ahead = pool.submit(following)
                yield found

    def _part(self, unit: Unit, decoded: DecodedUnit) -> TokenPart:
        views = self.encoder.rows([decoded.pixels, *decoded.further], self._tile_done)
        ids = views.pop(PLAIN)
        keys = np.array([key.encode() for key in decoded.keys], dtype=None if decoded.keys else "S1")
        rejected = [asdict(one) for one in decoded.rejected]
        count = len(ids) + len(rejected)
        return TokenPart(unit.index, unit.first, count, unit.name, ids, decoded.labels, keys, views, rejected)

    def _tile_done(self, images: int) -> None:
        self.stop.check(SAVED)
        self.advance(images)

    def _write(self, part: TokenPart, written: Callable[[int], None]) -> None:
        self.folder.write(part)
        written(part.unit)
