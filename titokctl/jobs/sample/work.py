"""The part of one process in drawing a sample set.

Rank 0 leads: it broadcasts which tiles are missing, draws a share of them, and puts the set together. The processes
claim tiles one by one; each has them drawn (`tiles`, `ray_tiles`) and hands the images to the writer.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from titokctl.context import Context
from titokctl.distributed.stop import StopRequest
from titokctl.distributed.team import Team
from titokctl.errors import UserError
from titokctl.formats.run_folder import LOCATION, RunFolder, open_run, record_end
from titokctl.formats.sample_set import (
    MANIFEST,
    SampleSet,
    SampleSetWriter,
    check_fits,
    record_location,
    unfinished,
)
from titokctl.formats.token_cache import TokenCache
from titokctl.formats.unfinished import finished_already
from titokctl.jobs.launch_record import launch_record
from titokctl.jobs.sample.inputs import SampleTask
from titokctl.jobs.sample.scoring import Judge
from titokctl.jobs.sample.tiles import TileMaker
from titokctl.readable import counted
from titokctl.sampling.plan import Tile

_CHUNK_IMAGES = 256
_CHUNK_SECONDS = 30.0


@dataclass(frozen=True)
class Sampled:
    """A finished sample set.

    Args:
        samples: folder of the set.
        images: the file or folder that holds the images.
        run: the run folder.
        images_per_second: of this run; 0 when the set was finished before.
        metrics: of `fid`; {} without it.
    """

    samples: Path
    images: Path
    run: Path
    num_images: int
    images_per_second: float
    metrics: dict[str, float]


@dataclass
class SampleWork:
    """This process's part in drawing a set.

    Args:
        maker: draws tiles.
        output: folder of the set; None for the run folder.
        judge: computes the features of the images on the way, and the metrics at the end.
    """

    task: SampleTask
    maker: TileMaker
    output: Path | None
    judge: Judge | None
    team: Team
    context: Context

    def __post_init__(self) -> None:
        self.run_path = self.context.runs / "samples" / self.task.name(self.output)
        self.folder = self.output or self.run_path
        self.launch = launch_record(self.context)

    def lead(self, overwrite: bool) -> Sampled:
        """Broadcast which tiles are missing, draw a share of them, and put the set together."""
        identity = self.task.identity
        run = RunFolder(path=self.run_path, kind="samples", settings=identity, inputs=self.task.inputs())
        with contextlib.suppress(UserError):  # no earlier record that can be read
            before = open_run(self.run_path)
            run.launches = before.launches if before.settings == identity else []
        with unfinished(self.folder).locked():
            rate = 0.0
            if check_fits(self.folder, identity, overwrite) == "finished":
                self.context.say(finished_already(self.folder))
                self.team.begin(identity, [])
            else:
                run.launches.append(self.launch)
                if self.output:
                    record_location(self.run_path, self.output)  # whose lock tells that the run is at work
                run.save()
                try:
                    rate = self._draw(overwrite)
                except BaseException as error:
                    record_end(run, error)
                    raise
            if self.output:
                record_location(self.run_path, self.output)
            # Also when the set was finished before: it becomes the newest, since the user has just asked for it.
            ids_sha256 = TokenCache.open(SampleSet.open(self.folder).ids, check_ids=False).sha256
            run.finish(LOCATION if self.output else MANIFEST, {"ids_sha256": ids_sha256, **self.task.hashes})
            unfinished(self.folder).remove()
            self.team.set("finished", rate)
            return self._result(rate)

    def follow(self) -> Sampled:
        """Draw a share of the tiles that rank 0 broadcasts."""
        todo = self.team.join(self.task.identity, "other networks, another version or another folder", self.folder)
        if todo:
            with self._writer() as writer:
                writer.open()
                self._share(writer, todo)
        self.team.finish()
        return self._result(self.team.get("finished"))

    def _draw(self, overwrite: bool) -> float:
        """Draw the missing images and finish the set. Returns images/s of all processes together."""
        with self._writer() as writer:
            writer.begin(overwrite)
            writer.open()
            total, before, began = self.task.plan.num_images, writer.num_done, time.monotonic()
            todo = [number for number, tile in enumerate(self.task.plan.tiles()) if tile.first not in writer.done]
            self.team.begin(self.task.identity, todo)
            self.context.progress.start("sample", total, "images", before)
            try:
                self._share(writer, todo)
                self.team.finish()
            finally:
                self.context.progress.close()
            rate = (total - before) / max(time.monotonic() - began, 1e-9)
            writer.read_chunks()
            features = self.judge.collected(writer) if self.judge else None
            writer.finish(self.task.header(), self.task.manifest())
        if self.judge and features is not None:
            self.judge.keep(self.folder, features, self.task, self.context)
        return rate

    def _share(self, writer: SampleSetWriter, todo: list[int]) -> None:
        """Draw the tiles of `todo` that no other process takes."""

        def saved() -> str:
            if not self.team.group.is_single:
                return f"The images that were drawn are kept in {self.folder}."
            return f"{writer.num_done:,} of {counted(self.task.plan.num_images, 'images')} kept in {self.folder}."

        tiles = self.task.plan.tiles()
        mine = (tiles[number] for number in self.team.pieces(todo))
        draw(self.maker, writer, mine, self.team.advance, self.context.stop, saved)

    def _result(self, rate: float) -> Sampled:
        """Return the result, with the metrics, which all processes compute together."""
        metrics = self.judge.metrics(self.folder, self.task, self.context) if self.judge else {}
        images = SampleSet.open(self.folder).images
        return Sampled(self.folder, images, self.run_path, self.task.plan.num_images, rate, metrics)

    def _writer(self) -> SampleSetWriter:
        widths = self.judge.extractor.widths if self.judge else None
        return SampleSetWriter(self.folder, self.task.identity, self.task.spec(), widths)


def draw(
    maker: TileMaker,
    writer: SampleSetWriter,
    tiles: Iterator[Tile],
    advance: Callable[[int], None],
    stop: StopRequest,
    saved: Callable[[], str],
) -> None:
    """Draw `tiles` and commit all their images. Raises Stopped after a signal.

    Args:
        advance: called with the number of images that were handed to the writer.
        stop: checked between tiles; what was drawn is committed first.
        saved: returns a sentence about what is kept.
    """
    committed = time.monotonic()
    for tile, pieces in maker.drawn(tiles, stop):
        for piece in pieces:
            writer.add(piece.first, piece.count, piece.rows)
        waited = time.monotonic() - committed
        if writer.num_pending >= _CHUNK_IMAGES or waited >= _CHUNK_SECONDS or stop.requested:
            writer.commit(wait=stop.requested)
            committed = time.monotonic()
        if stop.requested:
            stop.check(saved())
        advance(tile.count)
    writer.commit()
    if stop.requested:  # a signal came while the last images were drawn or written
        stop.check(saved())
