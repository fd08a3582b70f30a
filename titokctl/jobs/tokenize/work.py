"""One process's work in a tokenize command: the first process of a group leads, the others follow.

Each takes a unit, makes its part (`local_parts`, `ray_parts`), and takes the next one. Processes of a group take units
from the group's store. Jobs that share nothing but a folder (--part i/n) divide the units by arithmetic: unit u belongs
to part u mod n. With Ray there is one process here, and Ray's workers make the parts.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from titokctl.context import Context
from titokctl.data.sources import Source
from titokctl.distributed.team import Team
from titokctl.errors import UsageError, UserError
from titokctl.formats.token_cache import TokenCache, labelled_rows
from titokctl.formats.token_header import CacheHeader
from titokctl.formats.token_parts import PartsFolder
from titokctl.formats.token_tally import Tally
from titokctl.formats.unfinished import finished_already
from titokctl.jobs.tokenize.local_parts import SAVED, PartMaker
from titokctl.jobs.tokenize.output import TokenizeResult, check_space, finished_before, make_output
from titokctl.readable import counted, first_few

_NAMED_PARTS = 5


def parse_part(text: str) -> tuple[int, int]:
    """Return `--part i/n`, with i from 0 or from 1, as (i mod n, n). Raises UsageError for anything else."""
    number, _, of = text.partition("/")
    if not (number.isdigit() and of.isdigit() and 0 <= int(number) <= int(of) and int(of) > 0):
        raise UsageError(f"--part {text!r} is not i/n", "e.g. --part 3/8 for the third of eight jobs")
    return int(number) % int(of), int(of)


@dataclass(frozen=True)
class TokenizeWork:
    """This process's share of a tokenize command.

    Args:
        source: the images.
        header: of the cache.
        maker: makes the parts of units.
        folder: where finished parts go.
        part: (i, n) of one of n jobs that share nothing but the folder; None for the whole source.
        context: of the command.
        team: the processes that work together.
    """

    source: Source
    header: CacheHeader
    maker: PartMaker
    folder: PartsFolder
    part: tuple[int, int] | None
    context: Context
    team: Team

    def lead(self, max_rejected: float | None, overwrite: bool, compress: bool) -> TokenizeResult:
        """Distribute the units, make parts of some, wait for the other processes, and make the output."""
        header = self.header
        found = None if overwrite else finished_before(self.folder, header)
        if found is not None:
            self.context.say(finished_already(self.folder.output))
            self.team.begin(asdict(header), [])
            self.folder.remove_if_idle()
            return self._result(found)
        check_space(self.folder.output, header, len(self.source))
        try:
            figures = self._lead(max_rejected, overwrite, compress)
        except UserError:
            # Where the file system has no locks, another job may have merged and deleted the parts.
            if self.part is None or finished_before(self.folder, header) is None:
                raise
            figures = {}
        found = finished_before(self.folder, header)
        if found is not None:
            self.folder.remove_if_idle()
        return self._result(found, **figures)

    def follow(self) -> None:
        """Make parts of the units that the leader distributes; the leader alone has a result."""
        todo = self.team.join(asdict(self.header), "another source, tokenizer or version")
        if todo:
            self._make_parts(self.team.pieces(todo))
        self.team.finish()

    def plan_done(self, overwrite: bool) -> int:
        """Return how many images are done already; raises UserError where `lead` would before it writes."""
        header, units = self.header, self.source.units
        if not overwrite and finished_before(self.folder, header) is not None:
            return len(self.source)
        check_space(self.folder.output, header, len(self.source))
        if not self.folder.resumes(header, len(units), overwrite):
            return 0
        return sum(units[unit].count for unit in self.folder.finished() if unit < len(units))

    def _lead(self, max_rejected: float | None, overwrite: bool, compress: bool) -> dict[str, Any]:
        """Do the work with the folder locked, and return figures for the result."""
        header, units, progress = self.header, self.source.units, self.context.progress
        began, is_shared = time.monotonic(), self.part is not None
        with self.folder.locked(is_shared):
            resumed = self.folder.begin(header, len(units), overwrite, is_shared)
            todo = self._todo(resumed)
            self.team.begin(asdict(header), todo)
            own = self._own_units()
            total, left = (sum(units[i].count for i in numbers) for numbers in (own, todo))
            progress.start("tokenize", total, done=total - left)
            self._make_parts(self.team.pieces(todo))
            self.team.finish()
            progress.close()
            seconds = time.monotonic() - began
            tally = self._make_output(max_rejected, compress)
        return {
            "rejected_by_kind": (tally or Tally()).by_kind,
            "units_reused": len(own) - len(todo),
            "seconds": time.monotonic() - began,
            "images_per_second": self.team.images / max(seconds, 1e-9),
        }

    def _own_units(self) -> range:
        first, step = self.part or (0, 1)
        return range(first, len(self.source.units), step)

    def _todo(self, resumed: bool) -> list[int]:
        """Return the units without an intact part; each part is read and checked."""
        own = self._own_units()
        if not resumed:
            return list(own)
        if self.part is not None and finished_before(self.folder, self.header) is not None:
            return []  # another job has merged since this one looked
        todo = [unit for unit in own if not self._is_finished(unit)]
        if len(todo) < len(own):
            done = f"finished parts: {len(own) - len(todo):,} of {len(own):,}"
            self.context.say(f"resuming {self.folder.output}: {done}")
        return todo

    def _is_finished(self, number: int) -> bool:
        self.context.stop.check(SAVED)
        unit = self.source.units[number]
        try:
            part = self.folder.read(number)
        except UserError as error:
            self.context.say(f"{error.message}: it is made again")
            return False
        # A shard that can't be sought may turn out to hold more than was counted before it was read.
        if part is not None and part.state != unit.state:
            self.context.say(f"{unit.name} has another version on the server: it is read again")
            return False
        return part is not None and part.first == unit.first and part.count >= unit.count

    def _make_parts(self, todo: Iterator[int]) -> None:
        """Make the parts of the units `todo`, which is asked for the next one when it can be begun."""
        units = (self.source.units[number] for number in todo)
        self.maker.make(units, self.folder.write, self.team.advance, self.context)
        self.context.stop.check(SAVED)

    def _make_output(self, max_rejected: float | None, compress: bool) -> Tally | None:
        """Make the output from the parts; None where other jobs still work, or one of them merges or has merged."""
        header, made = self.header, (max_rejected, compress, self.context.progress)
        if self.part is None:
            return make_output(self.folder, self.source, header, *made)
        missing = set(range(len(self.source.units))) - self.folder.finished()
        if missing:
            if finished_before(self.folder, header) is None:
                of = self.part[1]
                parts = [f"{i}/{of}" for i in sorted({unit % of for unit in missing})]
                self.context.say(
                    f"other jobs are still working; the last one to finish merges the parts (missing: "
                    f"{counted(len(missing), 'units')} of --part {first_few(parts, _NAMED_PARTS)})"
                )
            return None
        with self.folder.merging() as is_ours:
            if not is_ours:
                self.context.say("another job merges the parts")
            elif finished_before(self.folder, header) is None:
                return make_output(self.folder, self.source, header, *made)
        return None

    def _result(self, made: TokenCache | None, **figures: Any) -> TokenizeResult:
        rows, rejected = (len(made), made.header.num_rejected or 0) if made is not None else (0, 0)
        recorded = made.header.source if made is not None else {}
        return TokenizeResult(
            output=self.folder.output,
            finished=made is not None,
            rows=rows,
            rejected=rejected,
            samples=rows + rejected,
            views=["plain", *self.header.views],
            classes=int(np.count_nonzero(labelled_rows(made.labels))) if made is not None else 0,
            unlabelled=int((made.labels < 0).sum()) if made is not None else 0,
            passed_over=recorded.get("passed_over", {}),
            label_files=recorded.get("label_files", 0),
            sha256=made.sha256 if made is not None else "",
            **figures,
        )
