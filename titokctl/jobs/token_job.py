"""One process's part in a tokenize job: the first one leads, says what is to do, and makes the output at the end."""

import contextlib
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.data.sources import Source, Unit
from titokctl.distributed.group import Group
from titokctl.distributed.stop import StopRequest
from titokctl.distributed.work_queue import Board
from titokctl.errors import UserError
from titokctl.formats.token_cache import TokenCache
from titokctl.formats.token_header import CacheHeader
from titokctl.formats.token_merge import Tally
from titokctl.formats.token_parts import PartsFolder
from titokctl.formats.unit_claims import MERGE, UnitClaims
from titokctl.jobs.tile_encoder import TileEncoder
from titokctl.jobs.token_output import TokenOutput, check_space, finished_before
from titokctl.jobs.token_team import Share, TeamProgress, claimed, queued, unfinished
from titokctl.jobs.unit_work import UnitWork
from titokctl.progress import Progress


@dataclass(frozen=True)
class TokenizeResult:
    """What was made. rows + rejected = samples.

    `finished` is False when other jobs that share the work still have units in hand.
    """

    output: Path
    finished: bool
    rows: int
    rejected: int
    samples: int
    rejected_by_kind: dict[str, int]
    views: list[str]
    classes: int
    units_reused: int
    seconds: float
    images_per_second: float
    sha256: str


@dataclass
class TokenJob:
    """This process's part in the command."""

    source: Source
    preprocessing: PreprocessingConfig
    encoder: TileEncoder
    header: CacheHeader
    folder: PartsFolder
    group: Group
    board: Board
    share: Share | None
    progress: Progress
    stop: StopRequest

    def run(self, workers: int, max_rejected: float | None, overwrite: bool, compress: bool) -> TokenizeResult | None:
        """Lead in the first process of the group, which alone has a result; follow in the others."""
        if self.group.is_main:
            return self._lead(workers, max_rejected, overwrite, compress)
        self._follow(workers)
        return None

    def _lead(self, workers: int, max_rejected: float | None, overwrite: bool, compress: bool) -> TokenizeResult:
        """Say what is to be done, do a share of it, wait for the others, and make the output."""
        shared = self.share is not None
        if not overwrite and (found := finished_before(self.folder.output, self.header)) is not None:
            self._begin([])
            self.folder.remove_if_left()
            return _existing(found)
        check_space(self.folder.output, self.header, len(self.source))
        began = time.monotonic()
        output = TokenOutput(self.folder, self.source, self.header, compress, self.progress)
        with self.folder.locked(shared), contextlib.ExitStack() as stack:
            resumed = self.folder.begin(self.header, len(self.source.units), overwrite, shared)
            todo = self._todo(resumed)
            claims = stack.enter_context(UnitClaims(self.folder.path, str(self.share))) if shared else None
            self._begin(todo)
            self.progress.start("tokenize", len(self.source), done=len(self.source) - _samples(todo))
            counted = self._work(todo, workers, claims)
            self.board.wait_for("finished", self.group.world_size - 1, counted.advance)
            counted.advance()
            self.progress.close()
            seconds = time.monotonic() - began
            made = None
            if self._is_ours_to_finish(claims):
                tally = output.tally()
                output.check_rejected(tally, max_rejected)
                made = tally, output.make(tally)
        if shared and made is None and (found := finished_before(self.folder.output, self.header)) is not None:
            return _existing(found)
        speed = self.board.count("images") / max(seconds, 1e-9)
        reused = len(self.source.units) - len(todo)
        return self._result(made, reused, time.monotonic() - began, speed)

    def _begin(self, todo: list[Unit]) -> None:
        """Tell the others what is to be done."""
        self.board.tell("begin", {"todo": [unit.index for unit in todo], "header": _digest(self.header)})

    def _follow(self, workers: int) -> None:
        """Do a share of what the leader says is to be done."""
        begun = self.board.hear("begin")
        if begun["header"] != _digest(self.header):
            raise UserError(
                f"process {self.group.rank} sees another source, tokenizer or version than process 0",
                "every machine must see the same files and run the same installation",
            )
        todo = [self.source.units[i] for i in begun["todo"]]
        with contextlib.ExitStack() as stack:
            shared = self.share is not None and bool(todo)
            claims = stack.enter_context(UnitClaims(self.folder.path, str(self.share))) if shared else None
            self._work(todo, workers, claims)
        self.board.count("finished", 1)

    def _todo(self, resumed: bool) -> list[Unit]:
        units = self.source.units
        if not resumed or self.share is not None:  # who shares checks parts when they are merged
            return units
        todo = unfinished(self.folder, units, self.progress.say, self.stop)
        if len(todo) < len(units):
            done = f"{len(units) - len(todo):,} of {len(units):,} parts are finished"
            self.progress.say(f"going on with {self.folder.output}: {done}")
        return todo

    def _work(self, todo: list[Unit], workers: int, claims: UnitClaims | None) -> TeamProgress:
        counted = TeamProgress(self.group, self.board, self.progress)
        work = UnitWork(self.source, self.preprocessing, self.encoder, self.folder, workers, counted.advance, self.stop)
        if claims is None or self.share is None:
            work.run(queued(self.group, todo))
        else:
            work.run(claimed(claims, self.folder, todo, self.share, self.stop), claims.release)
        return counted

    def _is_ours_to_finish(self, claims: UnitClaims | None) -> bool:
        """True unless other jobs are still at work, or one of them is merging."""
        if claims is None:
            return True
        missing = len(self.source.units) - len(self.folder.finished())
        if missing and self.folder.output.is_file():  # another one has merged already
            return False
        if missing:
            self.progress.say(f"{missing:,} units are in the hands of other jobs; the last of them merges")
        return not missing and claims.take(MERGE)

    def _result(self, made: tuple[Tally, str] | None, reused: int, seconds: float, speed: float) -> TokenizeResult:
        tally, sha256 = made or (Tally(), "")
        return TokenizeResult(
            output=self.folder.output,
            finished=made is not None,
            rows=tally.rows,
            rejected=tally.rejected,
            samples=tally.samples,
            rejected_by_kind=tally.by_kind,
            views=["plain", *self.header.views],
            classes=len(self.header.class_names),
            units_reused=reused,
            seconds=seconds,
            images_per_second=speed,
            sha256=sha256,
        )


def _existing(cache: TokenCache) -> TokenizeResult:
    """The result for a job of several that comes when the others have finished."""
    rejected = cache.header.num_rejected or 0
    return TokenizeResult(
        output=cache.path,
        finished=True,
        rows=len(cache),
        rejected=rejected,
        samples=len(cache) + rejected,
        rejected_by_kind={},
        views=list(cache.views),
        classes=len(cache.class_names),
        units_reused=0,
        seconds=0.0,
        images_per_second=0.0,
        sha256=cache.sha256,
    )


def _samples(units: Sequence[Unit]) -> int:
    return sum(unit.count for unit in units)


def _digest(header: CacheHeader) -> str:
    return hashlib.sha256(json.dumps(asdict(header), sort_keys=True).encode()).hexdigest()
