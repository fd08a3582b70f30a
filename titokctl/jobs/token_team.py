"""How the processes of a tokenize job divide its units: through the store of their process group, or through files."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from titokctl.data.sources import Unit
from titokctl.distributed.group import Group
from titokctl.distributed.stop import StopRequest
from titokctl.distributed.work_queue import Board, WorkQueue
from titokctl.errors import UsageError, UserError
from titokctl.formats.token_parts import PartsFolder
from titokctl.formats.unit_claims import UnitClaims
from titokctl.jobs.unit_work import SAVED
from titokctl.progress import Progress

_LOOK_EVERY_S = 1.0


@dataclass(frozen=True)
class Share:
    """`--part i/n`: this job begins with the units of the i-th of n shares, then helps with the others."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> "Share":
        """Read "i/n", counted from 0 or from 1. Raises UsageError for anything else."""
        number, _, of = text.partition("/")
        if not (number.isdigit() and of.isdigit() and 0 <= int(number) <= int(of) and int(of) > 0):
            raise UsageError(f"--part {text!r} is not i/n", "e.g. --part 3/8 for the third of eight jobs")
        return cls(int(number), int(of))

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def first(self, count: int) -> int:
        """Where this job begins in `count` units."""
        return (self.number % self.of) * count // self.of


class TeamProgress:
    """Counts images of all processes of a group; the first one shows them."""

    def __init__(self, group: Group, board: Board, progress: Progress) -> None:
        self._is_main, self._board, self._progress = group.is_main, board, progress
        self._shown = 0

    def advance(self, images: int = 0) -> None:
        """`images` more are done here."""
        total = self._board.count("images", images)
        if self._is_main:
            self._progress.advance(total - self._shown)
            self._shown = total


def queued(group: Group, todo: list[Unit]) -> Iterator[Unit]:
    """The next units of `todo` that no other process of the group has taken."""
    return (todo[number] for number in WorkQueue(group.shared_store("tokenize/units"), len(todo)))


def claimed(
    claims: UnitClaims, folder: PartsFolder, units: list[Unit], share: Share, stop: StopRequest
) -> Iterator[Unit]:
    """The next units that are not finished and that no living job has claimed, until all others are in good hands."""
    first = share.first(len(units))
    order = units[first:] + units[:first]
    while True:
        stop.check(SAVED)
        finished = folder.finished()
        order = [unit for unit in order if unit.index not in finished]
        took = 0
        for unit in order:
            if claims.take(unit.index):
                if folder.place(unit.index).exists():
                    claims.release(unit.index)
                    continue
                took += 1
                yield unit
        if not order or (not took and claims.others_at_work()):
            return
        if not took:
            time.sleep(_LOOK_EVERY_S)


def unfinished(folder: PartsFolder, units: list[Unit], say: Callable[[str], None], stop: StopRequest) -> list[Unit]:
    """The units without a part that is whole and fits; each part is read and checked."""
    return [unit for unit in units if not _is_finished(folder, unit, say, stop)]


def _is_finished(folder: PartsFolder, unit: Unit, say: Callable[[str], None], stop: StopRequest) -> bool:
    stop.check(SAVED)
    try:
        part = folder.read(unit.index)
    except UserError as error:
        say(f"{error.message}: made again")
        return False
    # A shard that can't be sought may turn out to hold more than was counted before it was read.
    return part is not None and part.first == unit.first and part.count >= unit.count
