"""Atomic writes: files appear complete or not at all.

Specification: a result is written under a temporary name in the folder of its target, flushed to the disk (fsync of
the file, then of the folder), and renamed to its final name. A reader therefore sees the old state or the new one,
after a crash at any moment. The temporary name, `.<name>.tmp-<machine>-<process id>-<random>`, tells who writes: the
next writer of the same target removes what a process left that ran on this machine since its last start and has
ended. Only a folder that replaces another one is missing for a moment: Python offers no system call that exchanges
two folders. After a crash in this moment the next writer puts the old folder back.
"""

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import os
import platform
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from titokctl.errors import UserError, fault_in_words
from titokctl.formats.file_kind import head_of, mistaken

_MARK, _REPLACED = ".tmp-", "-replaced"
_BOOT, _PROCESSES = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL, errno.ENOTSUP)


@contextlib.contextmanager
def atomic_path(target: Path, is_replaceable: bool = False) -> Iterator[Path]:
    """Yield a temporary path that becomes `target` when the block succeeds, and is removed when it fails.

    Works for a file or a folder, which the caller creates. Raises UserError when the disk is full.

    Args:
        is_replaceable: don't flush the rename: after a power failure the target may be missing, but never incomplete.
    """
    temporary = _temporary(target)
    replaced = temporary.with_name(f"{temporary.name}{_REPLACED}")
    try:
        with disk_errors(target):
            if not is_replaceable:
                _remove_those_of_killed_writers(target)
            yield temporary
            flush(temporary)
            if temporary.is_dir() and target.is_dir():
                os.replace(target, replaced)
            os.replace(temporary, target)
            if not is_replaceable:
                flush_entry(target.parent)
    finally:
        _remove(temporary)
        _remove(replaced)


def write_bytes(target: Path, data: bytes, is_replaceable: bool = False) -> None:
    """Write `data` to `target` atomically; `is_replaceable` as for `atomic_path`."""
    with atomic_path(target, is_replaceable) as temporary:
        temporary.write_bytes(data)


def write_json(target: Path, value: Any) -> None:
    """Write `value` as indented UTF-8 JSON atomically."""
    write_bytes(target, _as_json(value))


def write_new_json(target: Path, value: Any) -> bool:
    """Write JSON to `target` unless it exists. Of several processes exactly one writes and gets True."""
    temporary = _temporary(target)
    try:
        with disk_errors(target):
            temporary.write_bytes(_as_json(value))
            flush_entry(temporary)
            _link(temporary, target)
            flush_entry(target.parent)
        return True
    except FileExistsError:
        return False
    finally:
        _remove(temporary)


def _link(temporary: Path, target: Path) -> None:
    """Give a complete file the name `target`. Raises FileExistsError when the name is taken."""
    try:
        os.link(temporary, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # A file system without hard links, such as exFAT: whoever holds the folder's lock renames.
        with _locked(target.parent):
            if os.path.lexists(target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error
            os.replace(temporary, target)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of the folder itself, where the file system has locks; the kernel releases that of a killed one."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def read_json(path: Path, max_bytes: int = 64 << 20) -> Any:
    """Return the value in a JSON file. Raises UserError when it is missing, too large, or not JSON."""
    try:
        if path.stat().st_size > max_bytes:
            raise UserError(f"{path} is {path.stat().st_size:,} bytes, more than the maximum of {max_bytes:,}")
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        if other := mistaken(head_of(path), "json"):
            raise UserError(f"{path} is not valid JSON, but {other.words}", other.hint) from error
        raise UserError(f"{path} is not valid JSON ({error})") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def read_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; {} when it is missing, damaged, or holds another value."""
    try:
        found = read_json(path)
    except UserError:
        return {}
    return found if isinstance(found, dict) else {}


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_version(found: Any, newest: int, where: Path | str, what: str = "") -> None:
    """Raise UserError if the format_version `found` in the file `where` is above `newest`, the newest supported one."""
    if not isinstance(found, int) or found > newest:
        version = f" ({what} {found})" if what else ""
        raise UserError(f"{where} was written by a newer titokctl{version}", "upgrade titokctl")


def make_folder(folder: Path) -> None:
    """Create a folder and its parents, unless it exists. Raises UserError when that isn't possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        # ENOENT although parents are created: a file system without new folders, such as /proc.
        reason = "no folders can be created there" if error.errno == errno.ENOENT else error.strerror
        reason = "it is a file" if folder.is_file() else reason
        raise UserError(f"cannot make the folder {folder}: {reason}", "name another one") from error


@contextlib.contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Turn errors of the operating system while writing `target` into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        described = _in_words(error, target)
        if described is None:
            raise
        raise described from error


def _in_words(error: Exception, target: Path) -> UserError | None:
    """Return what to tell the user about an error while writing `target`; None if it is about something else."""
    number = getattr(error, "errno", None)
    if isinstance(error, FileExistsError):
        return None  # for callers that ask for it
    if not isinstance(error, OSError):
        return fault_in_words(error, target)  # h5py and safetensors raise exceptions of their own
    if not _is_about(error, target):
        return None
    if number in (errno.EACCES, errno.EPERM):
        return UserError(f"no permission to write {target}", "choose another output with -o")
    is_beside = isinstance(error.filename, str) and Path(error.filename).parent == target.parent
    if number == errno.ENOENT and is_beside and target.parent.is_dir():  # /proc, for one
        return UserError(f"no files can be created in {target.parent}", "choose another output with -o")
    if number in (errno.ENOENT, errno.ENOTDIR) and not target.parent.is_dir():
        return UserError(f"the folder {target.parent} does not exist", f"make it first: mkdir -p {target.parent}")
    if number in (errno.EISDIR, errno.ENOTDIR) and target.exists():
        kind = "a folder" if target.is_dir() else "a file"
        return UserError(f"{target} is {kind}: cannot replace it", "choose another output with -o")
    error.filename = None  # a temporary name means nothing to the user
    return fault_in_words(error, target)


def _is_about(error: OSError, target: Path) -> bool:
    """Return True if the error names no file, or `target`, a file in it, or its temporary name."""
    if not isinstance(error.filename, str | bytes):
        return True
    path = os.path.relpath(os.fsdecode(error.filename), target.parent)
    return path.split(os.sep)[0].lstrip(".").startswith(target.name.lstrip("."))


def claim(path: Path, size: int) -> None:
    """Allocate `size` bytes on disk for the file `path`, so that a full disk raises an ordinary error here.

    Inside a library, or in a write through a memory map, a full disk would kill the process.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENODEV):  # not supported by this file system
            raise
    finally:
        os.close(descriptor)


def user_cache() -> Path:
    """Return the user's cache folder: XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def is_temporary(name: str) -> bool:
    """Return True if a file of this name is one that a writer has not finished yet."""
    return name.startswith(".") and _MARK in name


def remove_leftovers(folder: Path, name: str) -> None:
    """Remove the temporary files that killed writers of `folder/name` left behind; `name` may have wildcards.

    Call it only when no other writer can be active.
    """
    for path in folder.glob(f".{name}{_MARK}*"):
        _remove(path)


def _remove_those_of_killed_writers(target: Path) -> None:
    """Remove temporary files of `target` whose writers ran here and have ended; put back a folder without its name."""
    prefix = f".{target.name}{_MARK}{_machine()}-"
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(target.parent) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(prefix)]
        for name in sorted(names, reverse=True):  # a folder that was replaced before the one that replaces it
            process = name.removeprefix(prefix).partition("-")[0]
            if not process.isdigit() or _is_alive(int(process)):
                continue
            if name.endswith(_REPLACED) and not target.exists():
                os.replace(target.with_name(name), target)
            else:
                _remove(target.with_name(name))


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


@functools.cache
def _machine() -> str:
    """Return an id of this machine since its last start, and of this container: process ids mean nothing elsewhere."""
    if _BOOT.is_file() and _PROCESSES.exists():
        known = f"{_BOOT.read_text()} {_PROCESSES.stat().st_ino}"
    else:
        known = platform.node()
    return hashlib.sha256(known.encode()).hexdigest()[:8]


def _temporary(target: Path) -> Path:
    return target.with_name(f".{target.name}{_MARK}{_machine()}-{os.getpid()}-{secrets.token_hex(4)}")


def _as_json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def flush(path: Path) -> None:
    """Wait until a file, or a folder and all its contents, are on disk."""
    for entry in [*path.rglob("*"), path] if path.is_dir() else [path]:
        if entry.is_file() or entry.is_dir():
            flush_entry(entry)


def flush_entry(path: Path) -> None:
    """Wait until one file, or the entries of one folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    """Remove a temporary file or folder, if there is one and that is possible.

    A read-only file system refuses that even for names that don't exist, which must not hide the error before.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
