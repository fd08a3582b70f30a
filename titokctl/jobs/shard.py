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
from titokctl.data.sources import Rejected, Source, open_source
from titokctl.data.sources.parquet import KIND as PARQUET
from titokctl.data.workers import available_cores, in_order
from titokctl.distributed.stop import StopRequest
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
from titokctl.jobs.plans import source_read
from titokctl.progress import Plan, Progress, about_to_write

PER_SHARD = 1000
REJECTED_NAME = "rejected.jsonl"
_PLAN = "plan.json"
_DONE = ".done.json"
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
    source = open_source(paths)
    settings = {
        "fingerprint": source.description["fingerprint"],
        "class_names": source.class_names,
        "per_shard": per_shard,
        "max_bytes": max_bytes,
        "order": f"shuffled with seed {seed}" if shuffle else "as in the source",
    }
    finished = _finished(output, settings, overwrite)
    staging = output.with_name(f".{output.name}.unfinished")
    order = epoch_order(seed, 0, len(source)) if shuffle else np.arange(len(source))
    parts = [] if finished else _cut(source, order, per_shard, max_bytes)
    about_to_write(lambda: _plan(paths, source, output, parts, settings, staging, finished))
    if finished is not None:
        progress.say(f"{output} is complete already")
        return finished
    with disk_errors(output), folder_lock(staging):
        _prepare(staging, settings)
        infos, rejected = _write_shards(staging, source, parts, progress, stop)
        if not any(info.samples for info in infos):
            shutil.rmtree(staging)
            raise UserError(f"none of the {len(source):,} images can be decoded", _named(rejected))
        _complete(staging, output, infos, source, settings, rejected)
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


def _plan(
    paths: Sequence[Path | str],
    source: Source,
    output: Path,
    parts: list[np.ndarray],
    settings: dict[str, Any],
    staging: Path,
    finished: Sharded | None,
) -> Plan:
    names = [shard_name(_PREFIX, number) for number in range(len(parts))]
    is_begun = _is_begun(staging, settings)
    done = sum(len(p) for p, n in zip(parts, names, strict=True) if is_begun and (staging / f"{n}{_DONE}").is_file())
    return Plan(
        reads=source_read(paths, source),
        output=output,
        count=len(source),
        done=len(source) if finished else done,
        num_bytes=None
        if source.description["kind"] == PARQUET
        else int(source.sizes().sum()) + _TAR_BYTES * len(source),
        settings={"shards": finished.shards if finished else len(parts), "order": settings["order"]},
        replaces=finished is None and output.is_dir() and any(output.iterdir()),
    )


def _is_begun(staging: Path, settings: dict[str, Any]) -> bool:
    """Whether the folder of unfinished work is that of the same command."""
    return (staging / _PLAN).is_file() and read_json(staging / _PLAN) == settings


def _prepare(staging: Path, settings: dict[str, Any]) -> None:
    """Empty the folder of unfinished work unless it is that of the same command."""
    if not _is_begun(staging, settings):
        for path in staging.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != _LOCK:
                path.unlink()
    write_json(staging / _PLAN, settings)


def _cut(source: Source, order: np.ndarray, per_shard: int, max_bytes: int | None) -> list[np.ndarray]:
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


def _write_shards(
    staging: Path, source: Source, parts: list[np.ndarray], progress: Progress, stop: StopRequest
) -> tuple[list[ShardInfo], list[Rejected]]:
    infos: list[ShardInfo] = []
    rejected: list[Rejected] = list(source.problems)
    names = _tar_keys(source)
    begun = False
    for number, positions in enumerate(parts):
        name = shard_name(_PREFIX, number)
        done = staging / f"{name}{_DONE}"
        if not done.is_file():
            if not begun:
                progress.start("shard", len(source), done=sum(len(p) for p in parts[:number]))
                begun = True
            remove_leftovers(staging, name)
            bad: list[Rejected] = []
            info = write_shard(staging / name, _samples(source, positions, names, bad, progress, stop))
            write_json(done, {"info": asdict(info), "rejected": [asdict(r) for r in bad]})
        record = read_json(done)
        infos.append(ShardInfo(**record["info"]))
        rejected += [Rejected.of(r) for r in record["rejected"]]
    progress.close()
    return infos, rejected


def _samples(
    source: Source,
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
        for item in found:
            if isinstance(item, Rejected):
                bad.append(item)
            else:
                yield item
        progress.advance(len(found))


def _tar_keys(source: Source) -> list[str]:
    """Keys as a tar can hold them: no dot in the last part, where WebDataset would cut; made distinct by a number."""
    taken: set[str] = set()
    keys = []
    all_keys = source.keys()
    for key in all_keys:
        folder, slash, base = key.rpartition("/")
        wanted = plain = folder + slash + base.replace(".", "_")
        n = 1
        while wanted in taken:
            n += 1
            wanted = f"{plain}-{n}"
        taken.add(wanted)
        keys.append(wanted)
    return keys


def _complete(
    staging: Path,
    output: Path,
    infos: list[ShardInfo],
    source: Source,
    settings: dict[str, Any],
    rejected: list[Rejected],
) -> None:
    """Add the lists, and give the folder its name."""
    for empty in [info for info in infos if not info.samples]:
        (staging / empty.name).unlink()
    extra = settings | {"source": source.description, "rejected": len(rejected)}
    write_set_index(staging, [info for info in infos if info.samples], source.class_names, extra)
    if rejected:
        lines = "".join(json.dumps(asdict(r), ensure_ascii=False) + "\n" for r in rejected)
        write_bytes(staging / REJECTED_NAME, lines.encode())
    for done in staging.glob(f"*{_DONE}"):
        done.unlink()
    for name in (_PLAN, _LOCK):
        (staging / name).unlink()
    old = output.with_name(f".{output.name}.old")
    if output.is_dir():
        os.replace(output, old)
    os.replace(staging, output)
    shutil.rmtree(old, ignore_errors=True)


def _named(rejected: list[Rejected]) -> str:
    return "; ".join(f"{r.key}: {r.reason}" for r in rejected[:3])


def _result(output: Path, infos: list[ShardInfo], class_names: list[str], rejected: list[Rejected]) -> Sharded:
    kept = [info for info in infos if info.samples]
    return Sharded(output, len(kept), sum(i.samples for i in kept), sum(i.bytes for i in kept), class_names, rejected)
