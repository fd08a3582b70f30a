"""Plain copies of shards that are compressed with gzip, since images are read by position.

Specification: the copy of `<name>` (a .tar.gz or .tgz) is `.titokctl-index/unpacked/<name>.tar` in the same folder, or,
if that can't be written, `$XDG_CACHE_HOME/titokctl/shard-index/unpacked/<start of the SHA-256 of its path>-<name>.tar`.
It has the time of modification of the compressed shard. Beside it, `<name>.json` is written when the copy is complete:
format "titokctl/unpacked-shard", format_version 1, `shard` (the path of the compressed shard), `cut` (where its gzip
data end too early, or ""), and of the compressed shard (`packed`) and of the copy (`copy`) each an object with `size`,
`mtime_ns` and `contents` (as of the offset index). A copy without this record, or that differs from it, is made again,
as is one of a shard that has changed. Both files may be deleted at any time when no process reads them: readers and
writers hold `.readers.lock` in the folder together, and `remove_unused` holds it alone.
"""

import contextlib
import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from titokctl.errors import UserError
from titokctl.formats.atomic import (
    atomic_path,
    is_temporary,
    make_folder,
    read_json,
    remove_leftovers,
    user_cache,
    write_json,
)
from titokctl.formats.file_kind import described
from titokctl.formats.folder_lock import folder_lock
from titokctl.formats.gzip_stream import GzipStream, open_gzip
from titokctl.formats.local_file import OF_SHARD, FileState, changed, contents_of, retried
from titokctl.formats.shard_index import FOLDER as INDEX_FOLDER
from titokctl.formats.shard_index import index_paths
from titokctl.formats.tar_headers import BLOCK, is_header
from titokctl.readable import size

FORMAT, FORMAT_VERSION = "titokctl/unpacked-shard", 1
RESERVE = 256 << 20  # bytes of the disk that stay free
_FOLDER, _SUFFIX, _READERS = "unpacked", ".tar", ".readers.lock"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_ROOM_HINT = "free some space, or set XDG_CACHE_HOME to a folder on a disk with room; then run the same command again"
_PIECE = 4 << 20
_MAX_RECORD = 1 << 16


class NoRoom(UserError):
    """A folder can't take a copy; another one may."""


class Held:
    """While it exists, no process removes a copy from `folder`; without effect where no lock can be made."""

    def __init__(self, folder: Path) -> None:
        self._lock = contextlib.ExitStack()
        with contextlib.suppress(OSError, UserError):
            self._lock.enter_context(folder_lock(folder, shared=True, name=_READERS, wait=lambda: None))

    def release(self) -> None:
        """Let copies be removed again."""
        self._lock.close()


def copy_of(shard: Path, accept_cut: bool = False) -> Path | None:
    """Return the complete and current copy of a compressed shard; None without one.

    Args:
        accept_cut: return also the copy of a truncated shard.
    """
    return next((copy for copy in _copies(shard) if _is_current(shard, copy, accept_cut)), None)


def cut_of(copy: Path) -> str:
    """Return where the gzip data of the shard of a current copy end too early; "" for a whole shard."""
    return str(_record(copy)["cut"])


def unpack(
    shard: Path,
    advance: Callable[[int], None],
    wait: Callable[[], None],
    reserve: int = RESERVE,
    accept_cut: bool = False,
) -> Path:
    """Return the copy of a compressed shard, made now unless another process has made it.

    Args:
        advance: called with each further number of compressed bytes that were read; what it raises ends the work.
        wait: called again and again while another process unpacks the shard; what it raises ends the wait.
        reserve: bytes of the disk that must stay free.
        accept_cut: copy a truncated shard as far as it goes.

    Raises UserError when the shard can't be read, is cut or damaged, holds no tar or too much, or no disk has room.
    """
    problems = []
    for copy in _copies(shard):
        try:
            _prepare(copy.parent, shard, reserve)
            with (
                _full_disks(copy.parent),
                folder_lock(copy.parent, shared=True, name=_READERS, wait=wait),
                folder_lock(copy.parent, name=_lock_of(copy), wait=wait),
            ):
                if not _is_current(shard, copy, accept_cut):
                    _write(shard, copy, advance, reserve, accept_cut)
            return copy
        except NoRoom as error:
            problems.append(error.message)
    raise UserError(f"{shard} can't be unpacked: {'; '.join(problems)}", _ROOM_HINT)


def remove_unused(folder: Path) -> int:
    """Delete the copies in `folder` whose shards were deleted or replaced; return their size in bytes.

    Nothing is deleted while another process reads or writes copies there, or a shard can't be checked.
    """
    if not any(is_temporary(path.name) for path in folder.glob(".*")) and not any(map(_is_unused, _all_in(folder))):
        return 0
    freed = 0
    with contextlib.suppress(OSError, UserError), folder_lock(folder, name=_READERS):
        remove_leftovers(folder, f"*{_SUFFIX}")
        for copy in filter(_is_unused, _all_in(folder)):
            taken = copy.lstat().st_size
            for path in (copy.with_suffix(".json"), *index_paths(copy), folder / _lock_of(copy), copy):
                path.unlink(missing_ok=True)
            freed += taken
    return freed


def copies_in(shards: Path) -> Path:
    """Return the folder of the copies beside the shards in a folder; it need not exist."""
    return shards / INDEX_FOLDER / _FOLDER


def user_copies() -> Path:
    """Return the folder of copies in the user's cache; it need not exist."""
    return user_cache() / "titokctl" / "shard-index" / _FOLDER


def checked_start(stream: GzipStream, shard: Path) -> bytes:
    """Return the first block of a compressed shard. Raises UserError when it isn't that of a tar."""
    block = stream.read(BLOCK)
    if not is_header(block):
        if stream.cut:
            raise UserError(f"{shard} is cut before its first image: {stream.cut}", "copy or download it again")
        what = f"{described(block)}, compressed with gzip" if block else "nothing"
        raise UserError(f"{shard} is not a tar shard: it contains {what}", "name shards of images")
    return block


def _prepare(folder: Path, shard: Path, reserve: int) -> None:
    """Make the folder of a copy. Raises NoRoom when it can't be made or written, or its disk has too little room."""
    try:
        make_folder(folder)
    except UserError as error:
        raise NoRoom(error.message) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise NoRoom(f"no permission to write {folder}")
    _check_room(folder, shard, retried(shard.stat, shard).st_size + reserve)


def _write(shard: Path, copy: Path, advance: Callable[[int], None], reserve: int, accept_cut: bool) -> None:
    before = FileState.of(shard.stat())
    with open_gzip(shard, accept_cut) as stream:
        piece = checked_start(stream, shard)
        with atomic_path(copy) as temporary:
            done = 0
            with temporary.open("wb") as file:
                while piece:
                    _check_room(copy.parent, shard, len(piece) + reserve)
                    file.write(piece)
                    advance(stream.consumed - done)
                    done = stream.consumed
                    piece = stream.read(_PIECE)
            now = FileState.of(shard.stat())
            if now != before:
                raise changed(shard, before, now)
            os.utime(temporary, ns=(before.mtime_ns, before.mtime_ns))
            copy.with_suffix(".json").unlink(missing_ok=True)  # of another copy
        head = {"format": FORMAT, "format_version": FORMAT_VERSION, "shard": str(shard.resolve()), "cut": stream.cut}
        write_json(copy.with_suffix(".json"), head | _facts(shard, copy))


@contextlib.contextmanager
def _full_disks(folder: Path) -> Iterator[None]:
    """Raise NoRoom where the disk of `folder` becomes full, or takes no file of this size."""
    try:
        yield
    except (OSError, UserError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        number = cause.errno if isinstance(cause, OSError) else None
        if number not in _FULL:
            raise
        raise NoRoom(f"cannot write to {folder} ({os.strerror(number).lower()})") from error


def _check_room(folder: Path, shard: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise NoRoom(f"the disk of {folder} has too little room for {shard.name}: {size(free)} free")


def _is_current(shard: Path, copy: Path, accept_cut: bool) -> bool:
    try:
        record = _record(copy)
        if record["cut"] and not accept_cut:
            return False
        if not stat.S_ISREG(copy.lstat().st_mode):
            return False
        return {name: record.get(name) for name in ("packed", "copy")} == _facts(shard, copy)
    except (OSError, UserError):
        return False


def _is_unused(copy: Path) -> bool:
    """Return True if the shard of a copy was deleted or replaced; False if that can't be found out."""
    try:
        record = _record(copy)
        beside = copy.parent.name == _FOLDER and copy.parent.parent.name == INDEX_FOLDER
        shard = copy.parent.parent.parent / copy.name.removesuffix(_SUFFIX) if beside else Path(record["shard"])
        state = FileState.of(shard.stat())
        return record["packed"] != record["packed"] | {"size": state.size, "mtime_ns": state.mtime_ns}
    except UserError as error:  # a copy without a record is incomplete, and would be made again
        return not isinstance(error.__cause__, OSError) or isinstance(error.__cause__, FileNotFoundError)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False


def _record(copy: Path) -> dict[str, Any]:
    """Return the record of a copy. Raises UserError when it is missing, or not of this version."""
    record: Any = read_json(copy.with_suffix(".json"), _MAX_RECORD)
    kinds = {"shard": str, "cut": str, "packed": dict, "copy": dict}
    is_known = isinstance(record, dict) and all(isinstance(record.get(name), kind) for name, kind in kinds.items())
    if not is_known or (record.get("format"), record.get("format_version")) != (FORMAT, FORMAT_VERSION):
        raise UserError(f"{copy} was not made by this version")
    found: dict[str, Any] = record
    return found


def _facts(shard: Path, copy: Path) -> dict[str, Any]:
    return {"packed": _state(shard), "copy": _state(copy)}


def _state(path: Path) -> dict[str, Any]:
    state = FileState.of(path.stat())
    contents = contents_of([path], [state], OF_SHARD)
    return {"size": state.size, "mtime_ns": state.mtime_ns, "contents": contents}


def _all_in(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{_SUFFIX}"))


def _lock_of(copy: Path) -> str:
    return f".{copy.name}.lock"


def _copies(shard: Path) -> tuple[Path, Path]:
    """Return the paths that a copy may have: beside the shard, and in the user's cache."""
    digest = hashlib.sha256(os.fsencode(str(shard.resolve()))).hexdigest()[:16]
    return copies_in(shard.parent) / f"{shard.name}{_SUFFIX}", user_copies() / f"{digest}-{shard.name}{_SUFFIX}"
