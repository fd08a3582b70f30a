"""One process's part in a `sample` command: the first one leads, says what is to be drawn, and finishes the set."""

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from titokctl.distributed.group import Group
from titokctl.distributed.stop import StopRequest
from titokctl.distributed.work_queue import Board, WorkQueue
from titokctl.errors import EXIT_STOPPED, Stopped, UserError
from titokctl.formats.folder_lock import folder_lock
from titokctl.formats.run_folder import RunFolder
from titokctl.formats.sample_set import (
    LOCATION,
    MANIFEST,
    SampleSet,
    changed_settings,
    record_location,
    remove,
    state_of,
)
from titokctl.formats.sample_set_writer import SampleSetWriter
from titokctl.formats.token_cache import TokenCache
from titokctl.jobs.image_decoder import ENCODERS
from titokctl.jobs.sample_fid import FidRequest
from titokctl.jobs.sample_record import SampleTask
from titokctl.jobs.sample_work import SampleWork
from titokctl.jobs.token_team import TeamProgress
from titokctl.progress import Progress
from titokctl.sampling.plan import Tile


@dataclass(frozen=True)
class Sampled:
    """What was drawn: the folder of the set, what holds its images, its run, and the metrics of --fid.

    `images_per_second` is this run's; 0 when the set was there already. Without --fid there are no metrics.
    """

    samples: Path
    images: Path
    run: Path
    num_images: int
    images_per_second: float
    metrics: dict[str, float]


@dataclass
class SampleJob:
    """This process's part in the command."""

    task: SampleTask
    runs: Path
    output: Path | None
    overwrite: bool
    fid: FidRequest | None
    group: Group
    board: Board
    progress: Progress
    stop: StopRequest

    def lead(self) -> Sampled:
        """Say what is to be drawn, draw a share of it, and put the set together."""
        run_path = self.runs / "samples" / self.task.name(self.output)
        folder = self.output or run_path
        run = RunFolder(path=run_path, kind="samples", settings=self.task.identity, inputs=self.task.inputs())
        with folder_lock(folder):
            if self.overwrite:
                remove(folder)
            check_same(folder, self.task.identity)
            rate = 0.0
            if state_of(folder) == "finished":
                self.progress.say(f"{folder} is finished already; --overwrite draws it again")
                self.board.tell("begin", None)
            else:
                run.save()
                rate = self._draw(folder)
            if self.output:
                record_location(run_path, self.output)
            # Also for a set that was there: who asks for it again means it, not one drawn in between.
            run.finish(
                LOCATION if self.output else MANIFEST, {"ids_sha256": _ids_sha256(folder), **self.task.networks.hashes}
            )
            self.board.tell("finished", [str(folder), str(run_path), rate])
            return self._result(folder, run_path, rate)

    def follow(self) -> Sampled:
        """Draw a share of what the leader says is to be drawn."""
        try:
            begun = self.board.hear("begin")
            if begun is not None:
                if begun["identity"] != _digest(self.task.identity) or not Path(begun["folder"]).is_dir():
                    raise UserError(
                        f"process {self.group.rank} sees other networks, another version or another folder than "
                        "process 0",
                        "every machine must see the same files and run the same installation",
                    )
                with self._writer(Path(begun["folder"])) as writer:
                    writer.open()
                    self._share(writer, begun["todo"])
                self.board.count("finished", 1)
            folder, run, rate = self.board.hear("finished")
        except Stopped:
            self.board.count("stopped", 1)
            raise
        return self._result(Path(folder), Path(run), rate)

    def _draw(self, folder: Path) -> float:
        """Draw what is missing and finish the set. Returns images/s of all processes together."""
        with self._writer(folder) as writer:
            writer.begin()
            writer.open()
            total, before, began = self.task.plan.num_images, writer.num_done, time.monotonic()
            todo = [number for number, tile in enumerate(self.task.plan.tiles()) if tile.first not in writer.done]
            self.board.tell("begin", {"folder": str(folder), "todo": todo, "identity": _digest(self.task.identity)})
            self.progress.start("sample", total, "images", before)
            try:
                counted = self._share(writer, todo)
                self.board.wait_for("finished", self.group.world_size - 1, lambda: self._look(counted, writer))
                counted.advance()
            finally:
                self.progress.close()
            rate = (total - before) / max(time.monotonic() - began, 1e-9)
            writer.read_chunks()
            features = self.fid.collected(writer) if self.fid else None
            writer.finish(self.task.header(), self.task.manifest())
        if self.fid and features is not None:
            self.fid.keep(folder, features, self.task, self.runs, self.progress)
        return rate

    def _share(self, writer: SampleSetWriter, todo: list[int]) -> TeamProgress:
        """Draw the tiles of `todo` that no other process takes."""
        counted = TeamProgress(self.group, self.board, self.progress)
        queue = WorkQueue(self.group.shared_store("sample/tiles"), len(todo))
        tiles: list[Tile] = self.task.plan.tiles()
        extractor = self.fid.extractor if self.fid else None
        work = SampleWork(self.task, writer, counted.advance, self.stop, lambda: self._saved(writer), extractor)
        work.run(tiles[todo[number]] for number in queue)
        return counted

    def _look(self, counted: TeamProgress, writer: SampleSetWriter) -> None:
        counted.advance()
        if self.board.count("stopped"):
            raise Stopped(EXIT_STOPPED, self._saved(writer))

    def _saved(self, writer: SampleSetWriter) -> str:
        if not self.group.is_single:
            return f"The images that were drawn are kept in {writer.folder}."
        return f"{writer.num_done:,} of {self.task.plan.num_images:,} images are kept in {writer.folder}."

    def _result(self, folder: Path, run: Path, rate: float) -> Sampled:
        """Judge the finished set, if that was asked for; all processes do it together."""
        metrics: dict[str, float] = {}
        if self.fid is not None:
            metrics = self.fid.judge(folder, self.task, self.runs, self.progress, self.stop, self.group)
        return Sampled(folder, SampleSet.open(folder).images, run, self.task.plan.num_images, rate, metrics)

    def _writer(self, folder: Path) -> SampleSetWriter:
        return SampleSetWriter(
            folder,
            self.task.identity,
            self.task.labels(),
            self.task.class_names,
            image_size=self.task.tokenizer.config.image_size,
            image_format=self.task.image_format,
            encode=ENCODERS.get(self.task.image_format),
            widths=self.fid.extractor.widths if self.fid else None,
        )


def check_same(folder: Path, identity: dict[str, Any]) -> None:
    """Raise UserError unless `folder` is free or holds a set of the same settings."""
    if state_of(folder) == "empty":
        return
    if state_of(folder) == "foreign":
        raise UserError(f"{folder} is not empty and holds no sample set", "choose another folder with -o")
    changed = changed_settings(folder, identity)
    if changed:
        lines = "\n".join(f"  {line}" for line in changed)
        raise UserError(
            f"{folder} was begun with other settings:\n{lines}",
            "repeat the command with the settings it was begun with, choose another -o, or start over with --overwrite",
        )


def _ids_sha256(folder: Path) -> str:
    return TokenCache.open(SampleSet.open(folder).ids, check_ids=False).sha256


def _digest(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
