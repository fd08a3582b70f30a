"""`titokctl shard`: pack images into WebDataset shards with an index; the bytes of the images don't change.

Which sample goes into which shard follows from the source and the settings by arithmetic, before anything is written.
So shards are finished one by one, and the same command resumes a stopped run.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from titokctl.context import Context
from titokctl.data.images import BadImage, decode, extension_of
from titokctl.data.order import epoch_order
from titokctl.data.sources import Rejected, SeekableSource, open_source
from titokctl.data.sources.choices import NO_CHOICES, Choices
from titokctl.data.sources.parquet import KIND as PARQUET
from titokctl.data.workers import in_order
from titokctl.distributed.place import available_cores
from titokctl.errors import UserError
from titokctl.formats.atomic import disk_errors, read_json, remove_leftovers, write_bytes, write_json
from titokctl.formats.replacing import check_free, check_name, files_to_delete
from titokctl.formats.shard_set import (
    ShardInfo,
    ShardSample,
    read_set_index,
    shard_name,
    write_set_index,
    write_shard,
)
from titokctl.formats.unfinished import Unfinished, check_made_with, finished_already
from titokctl.jobs.plan import WritePlan, say_source, source_read
from titokctl.readable import counted

PER_SHARD = 1000
REJECTED_NAME = "rejected.jsonl"
_RECORD = "plan.json"
_CHUNK = 16
_PREFIX = "shard"
_TAR_BYTES = 2304  # per sample, in addition to its image: about two headers, the label, and padding to blocks


@dataclass(frozen=True)
class Sharded:
    """The folder that was written, its shards, and the samples in it and left out."""

    folder: Path
    shards: int
    samples: int
    bytes: int
    class_names: list[str]
    rejected: list[Rejected]


@dataclass(frozen=True)
class Shard:
    """Write the images of a source as shards.

    Args:
        paths: class folders, a flat folder, or other shards.
        output: the folder to make.
        per_shard: samples in a shard, at most.
        max_bytes: bytes of image files in a shard, at most; a larger image gets a shard of its own.
        shuffle: mix the samples, so that every shard holds all classes; otherwise they keep the source's order.
        seed: of the shuffled order.
        overwrite: replace existing shards at `output`.
        choices: as for `open_source`.
    """

    paths: Sequence[Path | str]
    output: Path
    per_shard: int = PER_SHARD
    max_bytes: int | None = None
    shuffle: bool = True
    seed: int = 0
    overwrite: bool = False
    choices: Choices = NO_CHOICES

    def plan(self, context: Context) -> WritePlan:
        """Return what would be written.

        Raises UserError when the source can't be read, or when the output exists or was begun with other settings.
        """
        work = self._open(context, keep_index=False)
        source, output = work.source, self.output
        tar_bytes = (
            int(source.sizes().sum()) + _TAR_BYTES * len(source) if source.description["kind"] != PARQUET else None
        )
        return WritePlan(
            reads=source_read(self.paths, source),
            output=output,
            count=len(source),
            done=len(source) if work.finished else work.num_done(self.overwrite),
            num_bytes=tar_bytes,
            settings={
                "shards": work.finished.shards if work.finished else len(work.parts),
                "order": work.settings["order"],
            },
            removes=() if work.finished else files_to_delete(output),
        )

    def run(self, context: Context) -> Sharded:
        """Write the shards, or resume.

        Raises as `plan`, UserError when the disk is full or no image can be decoded, and Stopped after a signal, with
        the finished shards kept.
        """
        work = self._open(context, keep_index=True)
        say_source(work.source, context)
        if work.finished:
            context.say(finished_already(self.output))
            return work.finished
        with disk_errors(self.output), work.unfinished.locked():
            work.unfinished.begin(work.settings, self.overwrite)
            infos, rejected = work.write(context)
            if not any(info.samples for info in infos):
                work.unfinished.remove()
                named = "; ".join(f"{r.key}: {r.reason}" for r in rejected[:3])
                raise UserError(f"none of {counted(len(work.source), 'images')} can be decoded", named)
            work.complete(infos, rejected)
        return _result(self.output, infos, work.source.class_names, rejected)

    def _open(self, context: Context, keep_index: bool) -> "_Work":
        source = open_source(self.paths, keep_index=keep_index, choices=self.choices, context=context).by_position()
        settings = {
            "fingerprint": source.description["fingerprint"],
            "class_names": source.class_names,
            "per_shard": self.per_shard,
            "max_bytes": self.max_bytes,
            "order": f"shuffled with seed {self.seed}" if self.shuffle else "as in the source",
        }
        work = _Work(source, settings, Unfinished(self.output, record=_RECORD))
        work.finished = _finished(self.output, settings, self.overwrite)
        if not work.finished:
            work.unfinished.check_not_at_work()
            work.unfinished.resumes(settings, self.overwrite)
            order = epoch_order(self.seed, 0, len(source)) if self.shuffle else np.arange(len(source))
            work.parts = _cut(source, order, self.per_shard, self.max_bytes)
        return work


def _finished(output: Path, settings: dict[str, Any], overwrite: bool) -> Sharded | None:
    """Return the result if it exists. Raises UserError for anything else at the output, unless it may be replaced."""
    check_name(output)
    if not os.path.lexists(output) or (output.is_dir() and not any(output.iterdir())):
        return None
    record = read_set_index(output) if output.is_dir() and not output.is_symlink() else None
    if record is None:
        raise UserError(f"{output} exists already and was not made by `titokctl shard`", "choose another -o")
    if overwrite:
        check_free(output, overwrite)
        return None
    check_made_with(output, {name: record.get(name) for name in settings}, settings)
    infos = [ShardInfo(s["name"], s["samples"], s["bytes"]) for s in record["shards"]]
    rejected_file = output / REJECTED_NAME
    lines = rejected_file.read_text(encoding="utf-8").splitlines() if rejected_file.is_file() else []
    return _result(output, infos, record["class_names"], [Rejected.of(json.loads(line)) for line in lines])


def _result(output: Path, infos: list[ShardInfo], class_names: list[str], rejected: list[Rejected]) -> Sharded:
    kept = [info for info in infos if info.samples]
    return Sharded(output, len(kept), sum(i.samples for i in kept), sum(i.bytes for i in kept), class_names, rejected)


def _cut(source: SeekableSource, order: np.ndarray, per_shard: int, max_bytes: int | None) -> list[np.ndarray]:
    """Return the positions of each shard's samples in the source."""
    if max_bytes is None:
        return [order[i : i + per_shard] for i in range(0, len(order), per_shard)]
    sizes = source.sizes()[order]
    edges, count, total = [], 0, 0
    for i, size in enumerate(sizes.tolist()):
        if count and (count == per_shard or total + size > max_bytes):
            edges.append(i)
            count, total = 0, 0
        count, total = count + 1, total + size
    return np.split(order, edges)


@dataclass
class _Work:
    """The shards of `source` while they are written.

    Args:
        settings: what decides the bytes of the shards.
        unfinished: the folder that holds them until all are finished; it becomes the output.
        parts: the positions of each shard's samples in the source.
        finished: the result, if it exists already.
    """

    source: SeekableSource
    settings: dict[str, Any]
    unfinished: Unfinished
    parts: list[np.ndarray] = field(default_factory=list)
    finished: Sharded | None = None

    def num_done(self, overwrite: bool) -> int:
        """Return how many samples are in shards that an earlier run finished."""
        resumes = self.unfinished.resumes(self.settings, overwrite)
        return len(self.source) - self._num_in(self._missing()) if resumes else 0

    def write(self, context: Context) -> tuple[list[ShardInfo], list[Rejected]]:
        """Write the missing shards. Returns the contents of all shards, and the rejected images."""
        missing, names, folder = self._missing(), _tar_keys(self.source), self.unfinished.folder
        if missing:
            context.progress.start("shard", len(self.source), done=len(self.source) - self._num_in(missing))
        for number in missing:
            shard = shard_name(_PREFIX, number)
            remove_leftovers(folder, shard)
            rejected: list[Rejected] = []
            info = write_shard(folder / shard, _samples(self.source, self.parts[number], names, rejected, context))
            write_json(self._done(number), {"info": asdict(info), "rejected": [asdict(r) for r in rejected]})
        context.progress.close()
        records = [read_json(self._done(number)) for number in range(len(self.parts))]
        all_rejected = [Rejected.of(one) for record in records for one in record["rejected"]]
        return [ShardInfo(**record["info"]) for record in records], self.source.problems + all_rejected

    def complete(self, infos: list[ShardInfo], rejected: list[Rejected]) -> None:
        """Write the index and the list of rejected images, and rename the folder to the output."""
        folder = self.unfinished.folder
        for info in infos:
            if not info.samples:
                (folder / info.name).unlink()
        extra = self.settings | {"source": self.source.description, "rejected": len(rejected)}
        write_set_index(folder, [info for info in infos if info.samples], self.source.class_names, extra)
        if rejected:
            lines = "".join(json.dumps(asdict(r), ensure_ascii=False) + "\n" for r in rejected)
            write_bytes(folder / REJECTED_NAME, lines.encode())
        for number in range(len(infos)):
            self._done(number).unlink()
        self.unfinished.publish_folder()

    def _missing(self) -> list[int]:
        return [number for number in range(len(self.parts)) if not self._done(number).is_file()]

    def _num_in(self, shards: list[int]) -> int:
        return sum(len(self.parts[number]) for number in shards)

    def _done(self, number: int) -> Path:
        """Return the file that records a finished shard's contents and the images left out of it."""
        return self.unfinished.folder / f"{shard_name(_PREFIX, number)}.done.json"


def _samples(
    source: SeekableSource, positions: np.ndarray, names: list[str], rejected: list[Rejected], context: Context
) -> Iterator[ShardSample]:
    """Yield the readable samples at `positions`, unchanged, and append the others to `rejected`."""

    def check(chunk: np.ndarray) -> list[ShardSample | Rejected]:
        found: list[ShardSample | Rejected] = []
        for position, sample in zip(chunk.tolist(), source.read_many(chunk), strict=True):
            try:
                decode(sample.data)
                found.append(ShardSample(names[position], extension_of(sample.data), sample.data, sample.label))
            except BadImage as error:
                found.append(Rejected(sample.key, error.kind, error.text))
        return found

    chunks = [positions[i : i + _CHUNK] for i in range(0, len(positions), _CHUNK)]
    for _, found in in_order(check, chunks, available_cores(), ahead=8):
        context.stop.check("Finished shards are kept.")
        rejected += [item for item in found if isinstance(item, Rejected)]
        yield from (item for item in found if isinstance(item, ShardSample))
        context.progress.advance(len(found))


def _tar_keys(source: SeekableSource) -> list[str]:
    """Return unique keys without a dot in the last part, where WebDataset would split them."""
    taken: dict[str, None] = {}
    for key in source.keys():  # noqa: SIM118
        folder, slash, base = key.rpartition("/")
        wanted = plain = folder + slash + base.replace(".", "_")
        n = 1
        while wanted in taken:
            n += 1
            wanted = f"{plain}-{n}"
        taken[wanted] = None
    return list(taken)
