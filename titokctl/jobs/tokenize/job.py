"""One process's part in a tokenize job: the first one leads, says what is to do, and makes the output at the end."""

import contextlib
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from titokctl.data.sources import Source
from titokctl.data.workers import available_cores
from titokctl.distributed.stop import StopRequest
from titokctl.distributed.team import Team
from titokctl.errors import UserError
from titokctl.formats.token_cache import TokenCache
from titokctl.formats.token_merge import Tally
from titokctl.formats.token_parts import PartsFolder
from titokctl.formats.unit_claims import MERGE, UnitClaims
from titokctl.jobs.tokenize.encode import TileEncoder
from titokctl.jobs.tokenize.output import check_space, finished_before, make_output
from titokctl.jobs.tokenize.work import SAVED, UnitWork, claimed, in_turn
from titokctl.progress import Progress


@dataclass(frozen=True, kw_only=True)
class TokenizeResult:
    """What was made. rows + rejected = samples.

    `finished` is False when other jobs that share the work still have units in hand.
    """

    output: Path
    finished: bool
    rows: int
    rejected: int
    samples: int
    rejected_by_kind: dict[str, int] = field(default_factory=dict)
    views: list[str]
    classes: int
    units_reused: int = 0
    seconds: float = 0.0
    images_per_second: float = 0.0
    sha256: str


@dataclass
class TokenJob:
    """This process's part in the command; `part` is "i/n" in one of several jobs that share no process group."""

    source: Source
    encoder: TileEncoder
    folder: PartsFolder
    team: Team
    part: str | None
    workers: int | None
    progress: Progress
    stop: StopRequest

    def lead(self, max_rejected: float | None, overwrite: bool, compress: bool) -> TokenizeResult:
        """Say what is to be done, do a share of it, wait for the others, and make the output."""
        header, output, units = self.encoder.header, self.folder.output, self.source.units
        found = None if overwrite else finished_before(output, header)
        if found is not None:
            self.team.begin(asdict(header), [])
            self.folder.remove_if_left()
            return self._result(found)
        check_space(output, header, len(self.source))
        began, tally = time.monotonic(), None
        with self.folder.locked(self.part is not None):
            resumed = self.folder.begin(header, len(units), overwrite, self.part is not None)
            todo = self._todo(resumed)
            self.team.begin(asdict(header), todo)
            self.progress.start("tokenize", len(self.source), done=len(self.source) - sum(units[i].count for i in todo))
            with self._claims() as claims:
                self._work(todo, claims)
                self.team.finish()
                self.progress.close()
                seconds = time.monotonic() - began
                if claims is None or self._is_ours_to_finish(claims):
                    tally = make_output(self.folder, self.source, header, max_rejected, compress, self.progress)
        found = finished_before(output, header)
        if found is not None and tally is None:  # another job has merged
            return self._result(found)
        return self._result(
            found,
            rejected_by_kind=(tally or Tally()).by_kind,
            units_reused=len(units) - len(todo),
            seconds=time.monotonic() - began,
            images_per_second=self.team.images / max(seconds, 1e-9),
        )

    def follow(self) -> TokenizeResult | None:
        """Do a share of what the leader says is to be done; the leader alone has a result."""
        todo = self.team.join(asdict(self.encoder.header), "another source, tokenizer or version")
        if todo:
            with self._claims() as claims:
                self._work(todo, claims)
        self.team.finish()
        return None

    def _claims(self) -> contextlib.AbstractContextManager[UnitClaims | None]:
        return UnitClaims(self.folder.path, self.part) if self.part else contextlib.nullcontext()

    def _todo(self, resumed: bool) -> list[int]:
        """The units without a part that is whole and fits; each part is read and checked."""
        units = range(len(self.source.units))
        if not resumed or self.part is not None:  # who shares checks parts when they are merged
            return list(units)
        todo = [unit for unit in units if not self._is_finished(unit)]
        if len(todo) < len(units):
            done = f"{len(units) - len(todo):,} of {len(units):,} parts are finished"
            self.progress.say(f"going on with {self.folder.output}: {done}")
        return todo

    def _is_finished(self, number: int) -> bool:
        self.stop.check(SAVED)
        unit = self.source.units[number]
        try:
            part = self.folder.read(number)
        except UserError as error:
            self.progress.say(f"{error.message}: made again")
            return False
        # A shard that can't be sought may turn out to hold more than was counted before it was read.
        return part is not None and part.first == unit.first and part.count >= unit.count

    def _work(self, todo: list[int], claims: UnitClaims | None) -> None:
        # Two threads at least: with one, decoding would wait for the encoder.
        workers = self.workers or max(available_cores() // self.team.group.world_size, 2)
        work = UnitWork(self.source, self.encoder, self.folder, workers, self.team.advance, self.stop)
        if claims is None or self.part is None:
            work.run(self.team.pieces(todo))
        else:
            work.run(claimed(claims, self.folder, in_turn(self.part, todo), self.stop), claims.release)

    def _is_ours_to_finish(self, claims: UnitClaims) -> bool:
        """True unless other jobs are still at work, or one of them is merging."""
        missing = len(self.source.units) - len(self.folder.finished())
        if missing and self.folder.output.is_file():  # another one has merged already
            return False
        if missing:
            self.progress.say(f"{missing:,} units are in the hands of other jobs; the last of them merges")
        return not missing and claims.take(MERGE)

    def _result(self, made: TokenCache | None, **figures: Any) -> TokenizeResult:
        """What is in the output, if there is one, and what this run says of itself."""
        rows, rejected = (len(made), made.header.num_rejected or 0) if made is not None else (0, 0)
        return TokenizeResult(
            output=self.folder.output,
            finished=made is not None,
            rows=rows,
            rejected=rejected,
            samples=rows + rejected,
            views=["plain", *self.encoder.header.views],
            classes=len(self.encoder.header.class_names),
            sha256=made.sha256 if made is not None else "",
            **figures,
        )
