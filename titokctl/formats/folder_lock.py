"""One writer per folder: an advisory lock that the operating system releases when its holder dies.

Specification: `<folder>/.lock` is an empty file, locked with flock while a command writes to the folder: exclusively,
or shared by several commands that divide the work among them. Only the lock matters; the file may remain.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from titokctl.errors import UserError
from titokctl.formats.atomic import is_temporary, make_folder

LOCK = ".lock"
_PAUSE_S = 0.2


@contextlib.contextmanager
def folder_lock(
    folder: Path, shared: bool = False, name: str = LOCK, wait: Callable[[], None] | None = None
) -> Iterator[None]:
    """Hold the lock `name` of `folder`, alone or `shared`.

    Args:
        wait: called again and again while another process holds the lock; what it raises ends the wait.

    Raises UserError when another process holds the lock and `wait` is None.
    """
    while True:
        descriptor = _opened(folder, name)
        try:
            # The last holder may have deleted the file, or the whole folder, before it released the lock.
            if _locked_in_time(descriptor, folder, shared, wait) and not _exists(descriptor, folder / name):
                continue
            yield
            return
        finally:
            os.close(descriptor)


def contents_of(folder: Path) -> set[str]:
    """Return the names in `folder` but for its lock and what killed writers left."""
    return {path.name for path in folder.iterdir() if path.name != LOCK and not is_temporary(path.name)}


def is_held(folder: Path) -> bool | None:
    """Return True if a process holds the lock of `folder`; None if that can't be found out. Nothing is created."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):  # whoever holds a lock has made its file
        return False
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return False


def at_work(folder: Path) -> UserError:
    """Return the error for a folder that another process has locked."""
    return UserError(
        f"another titokctl is at work in {folder}", "wait for it, or stop it, and run the same command again"
    )


def _opened(folder: Path, name: str) -> int:
    while True:
        make_folder(folder)
        try:
            return os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            if folder.is_dir():  # not deleted in between: nothing can be made here
                raise


def _locked_in_time(descriptor: int, folder: Path, shared: bool, wait: Callable[[], None] | None) -> bool:
    """Return `_locked`, which is called again while another process holds the lock, if there is a `wait`."""
    while True:
        try:
            return _locked(descriptor, folder, shared)
        except UserError:
            if wait is None:
                raise
        wait()
        time.sleep(_PAUSE_S)


def _locked(descriptor: int, folder: Path, shared: bool) -> bool:
    """Lock an open file; False on a network file system without flock, where working without a lock beats not working.

    Raises UserError when another process holds the lock.
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise at_work(folder) from error
    except OSError:
        return False
    return True


def _exists(descriptor: int, path: Path) -> bool:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(found, os.fstat(descriptor))
