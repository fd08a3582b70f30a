"""One writer per folder: an advisory lock that the operating system releases when its holder dies.

Specification: `<folder>/.lock` is an empty file, locked with flock while a command writes to the folder: exclusively,
or shared by several commands that divide the work in another way. The file remains; only the lock matters.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from titokctl.errors import UserError
from titokctl.formats.atomic import make_folder


@contextlib.contextmanager
def folder_lock(folder: Path, shared: bool = False) -> Iterator[None]:
    """Hold the lock of `folder`, exclusive or `shared`. Raises UserError when another process holds it."""
    make_folder(folder)
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _lock(descriptor, folder, shared)
        yield
    finally:
        os.close(descriptor)


def is_held(folder: Path) -> bool | None:
    """Return True if a process holds the lock of `folder`; None if that can't be found out. Nothing is created."""
    try:
        descriptor = os.open(folder / ".lock", os.O_RDONLY | os.O_CLOEXEC)
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


def _lock(descriptor: int, folder: Path, shared: bool) -> None:
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise at_work(folder) from error
    except OSError:
        # Some network file systems have no flock; there, commands run without a lock.
        return
