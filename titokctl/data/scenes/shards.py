"""WebDataset shards of rendered scenes: a PNG and a JSON file with the scene's factors for each sample.

Shards are rendered by several processes and finished one by one; the same call resumes. The training set and the
held-out set of one seed are different stretches of the same endless set, so they share no scene.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from titokctl.context import Context
from titokctl.data.images import encode_png
from titokctl.data.scenes.factors import CLASS_NAMES, scene
from titokctl.data.scenes.renderer import render
from titokctl.distributed.place import available_cores
from titokctl.errors import UserError
from titokctl.formats.atomic import disk_errors, remove_leftovers
from titokctl.formats.shard_index import open_index
from titokctl.formats.shard_set import (
    ShardInfo,
    ShardSample,
    read_set_index,
    shard_name,
    write_set_index,
    write_shard,
)
from titokctl.formats.unfinished import Unfinished, begun_with_other_settings, changes

HELD_OUT_FROM = 1 << 40  # index of the first held-out scene
_SCENES = "titokctl scenes"
_RULE = f"{_SCENES} 1"  # changes with the factors or the renderer
_PER_SHARD = 1000
_RECORD = "plan.json"
_IN_PROCESSES = 200  # fewer scenes are rendered by the caller
_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from titokctl.data.scenes.shards import main; main()"
_LENGTH = 4  # bytes of a file's length in the pipe


@dataclass(frozen=True)
class SceneSet:
    """Scenes `first` to `first + count - 1` of the endless set `seed`, as pictures of `size` x `size` pixels."""

    count: int
    seed: int = 0
    size: int = 64
    first: int = 0

    def settings(self) -> dict[str, Any]:
        """Return what decides the bytes of the shards."""
        return {"rule": _RULE, **asdict(self)}


def write_scene_shards(folder: Path, scenes: SceneSet, context: Context, overwrite: bool = False) -> None:
    """Write `scenes` into `folder` as shards of 1,000 with an index; a finished folder of these scenes is kept.

    Args:
        overwrite: replace other scenes in the folder.

    Raises:
        UserError: the folder holds something else, the disk is full, or a process that renders died.
        Stopped: after a signal, with finished shards kept.
    """
    if _is_finished(folder, scenes, overwrite):
        return
    work = Unfinished(folder, record=_RECORD)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with disk_errors(folder), work.locked():
        work.begin(scenes.settings(), overwrite)
        names = [shard_name(folder.name, number) for number in range(-(-scenes.count // _PER_SHARD))]
        done = [name for name in names if (work.folder / name).is_file()]
        at = min(len(done) * _PER_SHARD, scenes.count)
        context.progress.start(f"render {folder.name}", scenes.count, "images", done=at)
        files = rendered(SceneSet(scenes.count - at, scenes.seed, scenes.size, scenes.first + at))
        with contextlib.closing(files):
            for name in names[len(done) :]:
                remove_leftovers(work.folder, name)
                count = min(_PER_SHARD, scenes.count - at)
                write_shard(work.folder / name, _samples(files, scenes, at, count, context))
                at += count
        context.progress.close()
        infos = [_info(work.folder / name) for name in names]
        write_set_index(work.folder, infos, CLASS_NAMES, scenes.settings())
        work.publish_folder()


def count_done(folder: Path, scenes: SceneSet, overwrite: bool = False) -> int:
    """Return how many of `scenes` are in finished shards; nothing is written. Raises as `write_scene_shards`."""
    if _is_finished(folder, scenes, overwrite):
        return scenes.count
    work = Unfinished(folder, record=_RECORD)
    work.check_not_at_work()
    if not work.resumes(scenes.settings(), overwrite):
        return 0
    return min(len(list(work.folder.glob("*.tar"))) * _PER_SHARD, scenes.count)


def rendered(scenes: SceneSet, processes: int | None = None) -> Generator[bytes, None, None]:
    """Yield the PNG files of `scenes` in order, rendered by `processes` processes: all cores by default.

    Raises UserError when one of them dies.
    """
    count = processes or min(available_cores(), -(-scenes.count // _IN_PROCESSES))
    if count <= 1:
        yield from (_file(scenes, index) for index in range(scenes.count))
        return
    pool = [_Renderer(scenes, number, count) for number in range(count)]
    try:
        for index in range(scenes.count):
            yield pool[index % count].file()
    finally:
        for renderer in pool:
            renderer.close()


class _Renderer:
    """A process that renders every so many-th scene of a set and writes the files to its output, each after its size.

    Taking turns after each scene keeps all processes busy: a pipe holds only a few files that have not been read. A
    plain process, since `multiprocessing` would import the caller's main module again.
    """

    def __init__(self, scenes: SceneSet, number: int, processes: int) -> None:
        settings = json.dumps([*asdict(scenes).values(), number, processes])
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, json.dumps(sys.path), settings],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C reaches only the parent, which closes the pipe
        )

    def file(self) -> bytes:
        """Return its next file."""
        assert self._process.stdout is not None
        size = int.from_bytes(self._process.stdout.read(_LENGTH), "little")
        data = self._process.stdout.read(size)
        if not size or len(data) != size:
            raise UserError(f"a process that renders scenes ended early, with code {self._process.wait()}")
        return data

    def close(self) -> None:
        """End the process; its next write fails when the pipe is closed."""
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process.kill()
        self._process.wait()


def main() -> None:
    """Render one process's share; its arguments are those that `_Renderer` gives."""
    count, seed, size, first, number, processes = json.loads(sys.argv[2])
    scenes = SceneSet(count, seed, size, first)
    with contextlib.suppress(BrokenPipeError):
        for index in range(number, count, processes):
            data = _file(scenes, index)
            sys.stdout.buffer.write(len(data).to_bytes(_LENGTH, "little") + data)
            sys.stdout.buffer.flush()


def _file(scenes: SceneSet, index: int) -> bytes:
    return encode_png(render(scene(scenes.seed, scenes.first + index), scenes.size), compress_level=1)


def _samples(files: Iterator[bytes], scenes: SceneSet, at: int, count: int, context: Context) -> Iterator[ShardSample]:
    for index in range(at, at + count):
        context.stop.check("Finished shards are kept.")
        factors = scene(scenes.seed, scenes.first + index)
        key = f"{index:08d}"
        yield ShardSample(key, "png", next(files), factors.label, factors.record())
        context.progress.advance()


def _is_finished(folder: Path, scenes: SceneSet, overwrite: bool) -> bool:
    """Return True if the folder holds these scenes.

    Raises UserError when it holds anything else, unless these are other scenes and `overwrite`.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    record = read_set_index(folder) if folder.is_dir() else None
    if record is None:
        raise UserError(f"{folder} exists already and was not made by `titokctl scenes`", "choose another folder")
    wanted = scenes.settings()
    changed = changes({name: record.get(name) for name in wanted}, wanted)
    if changed and not (overwrite and str(record.get("rule")).startswith(_SCENES)):
        raise begun_with_other_settings(folder, changed)
    return not changed and all((folder / shard["name"]).is_file() for shard in record["shards"])


def _info(path: Path) -> ShardInfo:
    index = open_index(path)
    return ShardInfo(path.name, len(index), index.size)
