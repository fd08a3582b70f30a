"""The files that shards are read from: the shards themselves, or plain copies of those that are compressed.

A plan writes nothing: shards without a copy are then decompressed as they are read, from front to end.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from titokctl.context import Context
from titokctl.formats.gzip_stream import GzipStream, is_gzip, open_gzip
from titokctl.formats.local_file import FileState, retried
from titokctl.formats.unpacked_shard import copies_in, copy_of, cut_of, remove_unused, unpack, user_copies
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
        cut: where the gzip data of its copy end too early; "" for a whole shard.
        accept_cut: read a truncated shard as far as it goes.
    """

    path: Path
    at: Path
    packed: FileState | None = None
    is_stream: bool = False
    cut: str = ""
    accept_cut: bool = False

    @property
    def is_copy(self) -> bool:
        """True if the shard is read through a copy."""
        return self.at != self.path

    def stream(self) -> GzipStream:
        """Open a compressed shard without a copy."""
        return open_gzip(self.path, self.accept_cut)


def shard_files(
    paths: Sequence[Path], keep: bool, context: Context | None, accept_cut: bool = False
) -> list[ShardFile]:
    """Return where each shard is read; compressed ones are unpacked first, if `keep`.

    Then the copies of shards that were deleted or replaced are removed, too, from the same folders.

    Args:
        accept_cut: read truncated shards as far as they go.
        context: shows what is unpacked, and stops that after a signal; None for neither.

    Raises:
        UserError: a compressed shard is damaged or holds too much, or no disk has room.
        Stopped: after a signal.
    """
    if keep:
        _remove_unused(paths, context)
    files = [_found(path, accept_cut) for path in paths]
    packed = [file for file in files if file.is_stream]
    if not packed or not keep:
        return files
    total = sum(file.packed.size for file in packed if file.packed)
    if context is not None:
        what = packed[0].path.name if len(packed) == 1 else counted(len(packed), "compressed shards")
        context.say(f"unpacking {what} ({size(total)}) once, since images are read by position")
        if total >= _MB:
            context.progress.start("unpack", total // _MB, "MB")
    work = _Unpacking(context, accept_cut)
    copies = {file.path: work.copy(file.path) for file in packed}
    if context is not None:
        context.progress.close()
        folders = ", ".join(dict.fromkeys(str(copy.parent) for copy in copies.values()))
        taken = size(sum(copy.stat().st_size for copy in copies.values()))
        context.say(f"the unpacked shards take {taken} in {folders}; you may delete them when you no longer need them")
    return [
        replace(file, at=copies[file.path], is_stream=False, cut=cut_of(copies[file.path])) if file.is_stream else file
        for file in files
    ]


class _Unpacking:
    """Calls `unpack`, with the progress in whole megabytes."""

    def __init__(self, context: Context | None, accept_cut: bool) -> None:
        self._context, self._accept_cut, self._bytes = context, accept_cut, 0

    def copy(self, shard: Path) -> Path:
        return unpack(shard, self._advance, self._check, accept_cut=self._accept_cut)

    def _advance(self, count: int) -> None:
        self._check()
        before, self._bytes = self._bytes, self._bytes + count
        if self._context is not None and self._bytes // _MB > before // _MB:
            self._context.progress.advance(self._bytes // _MB - before // _MB)

    def _check(self) -> None:
        if self._context is not None:
            self._context.stop.check(_WAIT_KEPT)


def _found(path: Path, accept_cut: bool) -> ShardFile:
    if not is_gzip(path):
        return ShardFile(path, path)
    state = FileState.of(retried(path.stat, path))
    copy = copy_of(path, accept_cut)
    if copy is None:
        return ShardFile(path, path, state, is_stream=True, accept_cut=accept_cut)
    return ShardFile(path, copy, state, cut=cut_of(copy))


def _remove_unused(paths: Sequence[Path], context: Context | None) -> None:
    folders = dict.fromkeys(copies_in(path.parent) for path in paths)
    for folder in (*folders, user_copies()):
        freed = remove_unused(folder)
        if freed and context is not None:
            context.say(
                f"removed {size(freed)} of unpacked shards whose originals were deleted or replaced from {folder}"
            )
