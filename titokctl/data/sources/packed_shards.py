"""Where the bytes of shards are read: in the shards themselves, or in plain copies of those that are compressed.

A plan writes nothing: shards without a copy are then decompressed as they are read, from front to end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from titokctl.context import Context
from titokctl.formats.gzip_stream import GzipStream, is_gzip, open_gzip
from titokctl.formats.local_file import FileState, retried
from titokctl.formats.unpacked_shard import copy_of, unpack
from titokctl.readable import counted, size

_MB = 1_000_000
_WAIT_KEPT = "Shards that were unpacked are kept."


@dataclass(frozen=True)
class ShardFile:
    """A shard, and where it is read.

    Args:
        path: the shard as the user named it.
        at: the tar to read by position, which is the shard or its copy.
        packed: the state of a compressed shard; None for a plain one.
        is_stream: True for a compressed shard without a copy.
    """

    path: Path
    at: Path
    packed: FileState | None = None
    is_stream: bool = False

    def stream(self) -> GzipStream:
        """Open a compressed shard without a copy."""
        return open_gzip(self.path)


def shard_files(paths: Sequence[Path], keep: bool, context: Context | None) -> list[ShardFile]:
    """Return where each shard is read; compressed ones are unpacked first, if `keep`.

    Args:
        context: shows what is unpacked, and stops that after a signal; None for neither.

    Raises:
        UserError: a compressed shard is damaged or holds too much, or no disk has room.
        Stopped: after a signal.
    """
    files = [_found(path) for path in paths]
    packed = [file for file in files if file.is_stream]
    if not packed or not keep:
        return files
    total = sum(file.packed.size for file in packed if file.packed)
    if context is not None:
        what = packed[0].path.name if len(packed) == 1 else counted(len(packed), "compressed shards")
        context.say(f"unpacking {what} ({size(total)}) once, since images are read by position")
        if total >= _MB:
            context.progress.start("unpack", total // _MB, "MB")
    work = _Unpacking(context)
    copies = {file.path: work.copy(file.path) for file in packed}
    if context is not None:
        context.progress.close()
        folders = ", ".join(dict.fromkeys(str(copy.parent) for copy in copies.values()))
        taken = size(sum(copy.stat().st_size for copy in copies.values()))
        context.say(f"the unpacked shards take {taken} in {folders}; you may delete them when you no longer need them")
    return [ShardFile(file.path, copies.get(file.path, file.at), file.packed) for file in files]


class _Unpacking:
    """Calls `unpack`, with the progress in whole megabytes."""

    def __init__(self, context: Context | None) -> None:
        self._context, self._bytes = context, 0

    def copy(self, shard: Path) -> Path:
        return unpack(shard, self._advance, self._check)

    def _advance(self, count: int) -> None:
        self._check()
        before, self._bytes = self._bytes, self._bytes + count
        if self._context is not None and self._bytes // _MB > before // _MB:
            self._context.progress.advance(self._bytes // _MB - before // _MB)

    def _check(self) -> None:
        if self._context is not None:
            self._context.stop.check(_WAIT_KEPT)


def _found(path: Path) -> ShardFile:
    if not is_gzip(path):
        return ShardFile(path, path)
    state = FileState.of(retried(path.stat, path))
    copy = copy_of(path)
    return ShardFile(path, copy or path, state, is_stream=copy is None)
