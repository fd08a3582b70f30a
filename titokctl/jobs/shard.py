"""`titokctl shard`: images -> WebDataset shards with an index, bytes unchanged.

Which sample goes into which shard is settled before anything is written, by arithmetic from the source and the
settings. So shards are finished one by one in `.<name>.unfinished` beside the output, the same command goes on where
it was stopped, and the folder gets its name when all are there.
"""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from titokctl.data.images import BadImage, decode, extension_of
from titokctl.data.order import epoch_order
from titokctl.data.sources import Rejected, SeekableSource, open_source
from titokctl.data.sources.parquet import KIND as PARQUET
from titokctl.data.workers import available_cores, in_order
from titokctl.distributed.stop import StopRequest
from titokctl.dry_run import about_to_write, is_dry_run
from titokctl.errors import UserError
from titokctl.formats.atomic import disk_errors, read_json, remove_leftovers, write_bytes, write_json
from titokctl.formats.folder_lock import folder_lock
from titokctl.formats.shard_set import (
    ShardInfo,
    ShardSample,
    read_set_index,
    shard_name,
    write_set_index,
    write_shard,
)
from titokctl.jobs.plan import WritePlan, source_read
from titokctl.progress import Progress

PER_SHARD = 1000
REJECTED_NAME = "rejected.jsonl"
_PLAN = "plan.json"
_CHUNK = 16
_PREFIX = "shard"
_LOCK = ".lock"
_TAR_BYTES = 2304  # of an image besides its own, about: two headers, the label, and filling up to blocks


@dataclass(frozen=True)
class Sharded:
    """What was written: the folder, its shards, and the samples in it and left out."""

    folder: Path
    shards: int
    samples: int
    bytes: int
    class_names: list[str]
    rejected: list[Rejected]


def shard(
    paths: Sequence[Path | str],
    output: Path,
    *,
    per_shard: int = PER_SHARD,
    max_bytes: int | None = None,
    shuffle: bool = True,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress,
    stop: StopRequest,
) -> Sharded:
    """Write the images of a source as shards.

    Args:
        paths: class folders, a flat folder, or other shards.
        output: the folder to make.
        per_shard: samples in a shard, at most.
        max_bytes: bytes of image files in a shard, at most; a larger image has a shard of its own.
        shuffle: mix the samples, so that every shard holds all classes; otherwise they keep the source's order.
        seed: of that order.
        overwrite: replace an existing output.

    Raises:
        UserError: the source can't be read, the output is in the way, the disk is full, no image can be decoded.
        Stopped: after a signal; finished shards are kept.
    """
    source = open_source(paths, keep_index=not is_dry_run()).by_position()
    settings = {
        "fingerprint": source.description["fingerprint"],
        "class_names": source.class_names,
        "per_shard": per_shard,
        "max_bytes": max_bytes,
        "order": f"shuffled with seed {seed}" if shuffle else "as in the source",
    }
    order = epoch_order(seed, 0, len(source)) if shuffle else np.arange(len(source))
    finished = _finished(output, settings, overwrite)
    work = _Work(source, output, settings, [] if finished else _cut(source, order, per_shard, max_bytes))
    about_to_write(lambda: work.plan(paths, finished))
    if finished is not None:
        progress.say(f"{output} is complete already")
        return finished
    with disk_errors(output), folder_lock(work.folder):
        work.begin()
        infos, rejected = work.write(progress, stop)
        if not any(info.samples for info in infos):
            shutil.rmtree(work.folder)
            named = "; ".join(f"{r.key}: {r.reason}" for r in rejected[:3])
            raise UserError(f"none of the {len(source):,} images can be decoded", named)
        work.complete(infos, rejected)
    return _result(output, infos, source.class_names, rejected)


def _finished(output: Path, settings: dict[str, Any], overwrite: bool) -> Sharded | None:
    """The result that is there already; raises UserError for anything else in the way, unless `overwrite`."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    record = read_set_index(output) if output.is_dir() else None
    if overwrite and record is not None:
        return None
    if record is None:
        raise UserError(f"{output} exists and holds no shards of ours", "choose another output with -o")
    differing = sorted(name for name, value in settings.items() if record.get(name) != value)
    if differing:
        text = f"{output} exists already, made with another {', '.join(differing)}"
        raise UserError(text, "--overwrite replaces it, or choose another output with -o")
    infos = [ShardInfo(s["name"], s["samples"], s["bytes"]) for s in record["shards"]]
    rejected_file = output / REJECTED_NAME
    lines = rejected_file.read_text(encoding="utf-8").splitlines() if rejected_file.is_file() else []
    return _result(output, infos, record["class_names"], [Rejected.of(json.loads(line)) for line in lines])


def _cut(source: SeekableSource, order: np.ndarray, per_shard: int, max_bytes: int | None) -> list[np.ndarray]:
    """The positions of each shard."""
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
    """The shards of `source` on their way, in a folder beside `output`.

    Args:
        settings: what decides about the shards.
        parts: the positions of the samples of each shard.
    """

    source: SeekableSource
    output: Path
    settings: dict[str, Any]
    parts: list[np.ndarray]

    def __post_init__(self) -> None:
        self.folder = self.output.with_name(f".{self.output.name}.unfinished")

    def plan(self, paths: Sequence[Path | str], finished: Sharded | None) -> WritePlan:
        """What would be written."""
        source, left = self.source, self._missing() if self._is_begun() else range(len(self.parts))
        return WritePlan(
            reads=source_read(paths, source),
            output=self.output,
            count=len(source),
            done=len(source) - sum(len(self.parts[number]) for number in left),
            num_bytes=None
            if source.description["kind"] == PARQUET
            else int(source.sizes().sum()) + _TAR_BYTES * len(source),
            settings={"shards": finished.shards if finished else len(self.parts), "order": self.settings["order"]},
            replaces=finished is None and self.output.is_dir() and any(self.output.iterdir()),
        )

    def begin(self) -> None:
        """Empty the folder unless the same command has begun it."""
        if not self._is_begun():
            for path in self.folder.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                elif path.name != _LOCK:
                    path.unlink()
        write_json(self.folder / _PLAN, self.settings)

    def write(self, progress: Progress, stop: StopRequest) -> tuple[list[ShardInfo], list[Rejected]]:
        """Write the shards that are missing. Returns what is in all of them, and what was left out."""
        missing, names = self._missing(), _tar_keys(self.source)
        if missing:
            left = sum(len(self.parts[number]) for number in missing)
            progress.start("shard", len(self.source), done=len(self.source) - left)
        for number in missing:
            shard = shard_name(_PREFIX, number)
            remove_leftovers(self.folder, shard)
            bad: list[Rejected] = []
            samples = _samples(self.source, self.parts[number], names, bad, progress, stop)
            info = write_shard(self.folder / shard, samples)
            write_json(self._record(number), {"info": asdict(info), "rejected": [asdict(r) for r in bad]})
        progress.close()
        records = [read_json(self._record(number)) for number in range(len(self.parts))]
        rejected = [Rejected.of(one) for record in records for one in record["rejected"]]
        return [ShardInfo(**record["info"]) for record in records], self.source.problems + rejected

    def complete(self, infos: list[ShardInfo], rejected: list[Rejected]) -> None:
        """Add the lists, and give the folder its name."""
        for info in infos:
            if not info.samples:
                (self.folder / info.name).unlink()
        extra = self.settings | {"source": self.source.description, "rejected": len(rejected)}
        write_set_index(self.folder, [info for info in infos if info.samples], self.source.class_names, extra)
        if rejected:
            lines = "".join(json.dumps(asdict(r), ensure_ascii=False) + "\n" for r in rejected)
            write_bytes(self.folder / REJECTED_NAME, lines.encode())
        for file in (*map(self._record, range(len(infos))), self.folder / _PLAN, self.folder / _LOCK):
            file.unlink()
        old = self.output.with_name(f".{self.output.name}.old")
        if self.output.is_dir():
            os.replace(self.output, old)
        os.replace(self.folder, self.output)
        shutil.rmtree(old, ignore_errors=True)

    def _is_begun(self) -> bool:
        """Whether the folder is that of the same command."""
        return (self.folder / _PLAN).is_file() and read_json(self.folder / _PLAN) == self.settings

    def _missing(self) -> list[int]:
        return [number for number in range(len(self.parts)) if not self._record(number).is_file()]

    def _record(self, number: int) -> Path:
        """What is in a shard, and what was left out; there once the shard is finished."""
        return self.folder / f"{shard_name(_PREFIX, number)}.done.json"


def _samples(
    source: SeekableSource,
    positions: np.ndarray,
    names: list[str],
    bad: list[Rejected],
    progress: Progress,
    stop: StopRequest,
) -> Iterator[ShardSample]:
    """The readable samples at `positions`, unchanged; the others are added to `bad`."""

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
        stop.check("Finished shards are kept.")
        bad += [item for item in found if isinstance(item, Rejected)]
        yield from (item for item in found if isinstance(item, ShardSample))
        progress.advance(len(found))


def _tar_keys(source: SeekableSource) -> list[str]:
    """Keys as a tar can hold them: no dot in the last part, where WebDataset would cut; made distinct by a number."""
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


def _result(output: Path, infos: list[ShardInfo], class_names: list[str], rejected: list[Rejected]) -> Sharded:
    kept = [info for info in infos if info.samples]
    return Sharded(output, len(kept), sum(i.samples for i in kept), sum(i.bytes for i in kept), class_names, rejected)
