"""Plain copies of shards that are compressed with gzip, since images are read by position.

Specification: the copy of `<name>` (a .tar.gz or .tgz) is `.titokctl-index/unpacked/<name>.tar` in the same folder, or,
if that can't be written, `$XDG_CACHE_HOME/titokctl/shard-index/unpacked/<start of the SHA-256 of its path>-<name>.tar`.
It has the time of modification of the compressed shard. Beside it, `<name>.json` is written when the copy is complete:
format "titokctl/unpacked-shard", format_version 1, and of the compressed shard (`packed`) and of the copy (`copy`) each
an object with `size`, `mtime_ns` and `contents` (as of the offset index). A copy without this record, or that differs
from it, is made again, as is one of a shard that has changed. Both files may be deleted at any time.
"""

import hashlib
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from titokctl.errors import UserError
from titokctl.formats.atomic import atomic_path, make_folder, read_json, user_cache, write_json
from titokctl.formats.file_kind import described
from titokctl.formats.folder_lock import folder_lock
from titokctl.formats.gzip_stream import GzipStream, open_gzip
from titokctl.formats.local_file import OF_SHARD, FileState, changed, contents_of, retried
from titokctl.formats.shard_index import FOLDER as INDEX_FOLDER
from titokctl.formats.tar_headers import BLOCK, is_header
from titokctl.readable import size

FORMAT, FORMAT_VERSION = "titokctl/unpacked-shard", 1
RESERVE = 256 << 20  # bytes of the disk that stay free
_FOLDER = "unpacked"
_PIECE = 4 << 20
_MAX_RECORD = 1 << 16


def copy_of(shard: Path) -> Path | None:
    """Return the complete and current copy of a compressed shard; None without one."""
    return next((copy for copy in _copies(shard) if _is_current(shard, copy)), None)


def unpack(shard: Path, advance: Callable[[int], None], wait: Callable[[], None], reserve: int = RESERVE) -> Path:
    """Return the copy of a compressed shard, made now unless another process has made it.

    Args:
        advance: called with each further number of compressed bytes that were read; what it raises ends the work.
        wait: called again and again while another process unpacks the shard; what it raises ends the wait.
        reserve: bytes of the disk that must stay free.

    Raises UserError when the shard can't be read, is cut or damaged, holds no tar or too much, or no disk has room.
    """
    problems = []
    for copy in _copies(shard):
        try:
            make_folder(copy.parent)
            _check_room(copy.parent, shard, retried(shard.stat, shard).st_size + reserve)
        except UserError as error:
            problems.append(error)
            continue
        if not os.access(copy.parent, os.W_OK | os.X_OK):
            problems.append(UserError(f"no permission to write {copy.parent}"))
            continue
        with folder_lock(copy.parent, name=f".{copy.name}.lock", wait=wait):
            if not _is_current(shard, copy):
                _write(shard, copy, advance, reserve)
        return copy
    reasons = "; ".join(error.message for error in problems)
    raise UserError(f"{shard} can't be unpacked: {reasons}", f"unpack it on a disk with room for it: gunzip -k {shard}")


def checked_start(stream: GzipStream, shard: Path) -> bytes:
    """Return the first block of a compressed shard. Raises UserError when it isn't that of a tar."""
    block = stream.read(BLOCK)
    if not is_header(block):
        what = f"{described(block)}, compressed with gzip" if block else "nothing"
        raise UserError(f"{shard} holds no tar, but {what}", "name shards of images")
    return block


def _write(shard: Path, copy: Path, advance: Callable[[int], None], reserve: int) -> None:
    before = FileState.of(shard.stat())
    record = copy.with_suffix(".json")
    with open_gzip(shard) as stream:
        piece = checked_start(stream, shard)
        with atomic_path(copy) as temporary:
            record.unlink(missing_ok=True)  # of another copy
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
    write_json(record, {"format": FORMAT, "format_version": FORMAT_VERSION} | _facts(shard, copy))


def _check_room(folder: Path, shard: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"the disk of {folder} has too little room for {shard.name}: {size(free)} free",
            f"make room, or unpack it on another disk: gunzip -c {shard} > OTHER/NAME.tar",
        )


def _is_current(shard: Path, copy: Path) -> bool:
    try:
        record: Any = read_json(copy.with_suffix(".json"), _MAX_RECORD)
        if not isinstance(record, dict) or not stat.S_ISREG(copy.lstat().st_mode):
            return False
        head = (record.get("format"), record.get("format_version"))
        return head == (FORMAT, FORMAT_VERSION) and {n: record.get(n) for n in ("packed", "copy")} == _facts(
            shard, copy
        )
    except (OSError, UserError):
        return False


def _facts(shard: Path, copy: Path) -> dict[str, Any]:
    return {"packed": _state(shard), "copy": _state(copy)}


def _state(path: Path) -> dict[str, Any]:
    state = FileState.of(path.stat())
    contents = contents_of([path], [state], OF_SHARD)
    return {"size": state.size, "mtime_ns": state.mtime_ns, "contents": contents}


def _copies(shard: Path) -> tuple[Path, Path]:
    """Return the paths that a copy may have: beside the shard, and in the user's cache."""
    digest = hashlib.sha256(os.fsencode(str(shard.resolve()))).hexdigest()[:16]
    cache = user_cache() / "titokctl" / "shard-index" / _FOLDER
    return shard.parent / INDEX_FOLDER / _FOLDER / f"{shard.name}.tar", cache / f"{digest}-{shard.name}.tar"
