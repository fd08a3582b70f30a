"""One process's part in a `sample` command: the first one leads, says what is to be drawn, and finishes the set."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from titokctl.data.image_decoder import ENCODERS
from titokctl.distributed.stop import StopRequest
from titokctl.distributed.team import Team
from titokctl.errors import UserError
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
from titokctl.jobs.sample.record import SampleTask
from titokctl.jobs.sample.scoring import FidRequest
from titokctl.jobs.sample.work import draw
from titokctl.progress import Progress


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
    fid: FidRequest | None
    team: Team
    progress: Progress
    stop: StopRequest

    def __post_init__(self) -> None:
        self.run_path = self.runs / "samples" / self.task.name(self.output)
        self.folder = self.output or self.run_path

    def lead(self, overwrite: bool) -> Sampled:
        """Say what is to be drawn, draw a share of it, and put the set together."""
        run = RunFolder(path=self.run_path, kind="samples", settings=self.task.identity, inputs=self.task.inputs())
        with folder_lock(self.folder):
            if overwrite:
                remove(self.folder)
            check_same(self.folder, self.task.identity)
            rate = 0.0
            if state_of(self.folder) == "finished":
                self.progress.say(f"{self.folder} is finished already; --overwrite draws it again")
                self.team.begin(self.task.identity, [])
            else:
                run.save()
                rate = self._draw()
            if self.output:
                record_location(self.run_path, self.output)
            # Also for a set that was there: who asks for it again means it, not one drawn in between.
            ids_sha256 = TokenCache.open(SampleSet.open(self.folder).ids, check_ids=False).sha256
            run.finish(LOCATION if self.output else MANIFEST, {"ids_sha256": ids_sha256, **self.task.networks.hashes})
            self.team.tell("finished", rate)
            return self._result(rate)

    def follow(self) -> Sampled:
        """Draw a share of what the leader says is to be drawn."""
        todo = self.team.join(self.task.identity, "other networks, another version or another folder", self.folder)
        if todo:
            with self._writer() as writer:
                writer.open()
                self._share(writer, todo)
        self.team.finish()
        return self._result(self.team.hear("finished"))

    def _draw(self) -> float:
        """Draw what is missing and finish the set. Returns images/s of all processes together."""
        with self._writer() as writer:
            writer.begin()
            writer.open()
            total, before, began = self.task.plan.num_images, writer.num_done, time.monotonic()
            todo = [number for number, tile in enumerate(self.task.plan.tiles()) if tile.first not in writer.done]
            self.team.begin(self.task.identity, todo)
            self.progress.start("sample", total, "images", before)
            try:
                self._share(writer, todo)
                self.team.finish()
            finally:
                self.progress.close()
            rate = (total - before) / max(time.monotonic() - began, 1e-9)
            writer.read_chunks()
            features = self.fid.collected(writer) if self.fid else None
            writer.finish(self.task.header(), self.task.manifest())
        if self.fid and features is not None:
            self.fid.keep(self.folder, features, self.task, self.runs, self.progress)
        return rate

    def _share(self, writer: SampleSetWriter, todo: list[int]) -> None:
        """Draw the tiles of `todo` that no other process takes."""

        def saved() -> str:
            if not self.team.group.is_single:
                return f"The images that were drawn are kept in {self.folder}."
            return f"{writer.num_done:,} of {self.task.plan.num_images:,} images are kept in {self.folder}."

        tiles = self.task.plan.tiles()
        mine = (tiles[number] for number in self.team.pieces(todo))
        draw(self.task, writer, mine, self.team.advance, self.stop, saved, self.fid.extractor if self.fid else None)

    def _result(self, rate: float) -> Sampled:
        """Judge the finished set, if that was asked for; all processes do it together."""
        metrics: dict[str, float] = {}
        if self.fid is not None:
            metrics = self.fid.judge(self.folder, self.task, self.runs, self.progress, self.stop, self.team.group)
        images = SampleSet.open(self.folder).images
        return Sampled(self.folder, images, self.run_path, self.task.plan.num_images, rate, metrics)

    def _writer(self) -> SampleSetWriter:
        return SampleSetWriter(
            self.folder,
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
    if state_of(folder) == "foreign":
        raise UserError(f"{folder} is not empty and holds no sample set", "choose another folder with -o")
    changed = changed_settings(folder, identity) if state_of(folder) != "empty" else []
    if changed:
        lines = "\n".join(f"  {line}" for line in changed)
        raise UserError(
            f"{folder} was begun with other settings:\n{lines}",
            "repeat the command with the settings it was begun with, choose another -o, or start over with --overwrite",
        )
