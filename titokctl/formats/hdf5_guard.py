"""HDF5 files without checksums of their structure are opened in a helper process first, which can be ended.

Zeroed bytes in the heap of such a file make libhdf5 loop for ever without reacting to signals. So a helper process
(`hdf5_helper`), whose computing time is limited by the kernel, opens the file before this process does. The layout of
HDF5 1.10, in which titokctl writes, has checksums, by which libhdf5 finds damage itself.
"""

import atexit
import json
import os
import subprocess
import sys
from pathlib import Path

from titokctl.errors import UserError

VARIABLE = "TITOKCTL_HDF5_HELPER"
CPU_SECONDS = 20
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_HAS_CHECKSUMS = 2  # the version of the superblock, from HDF5 1.8 on
_opened: set[tuple[int, ...]] = set()
_helpers: list[subprocess.Popen[str]] = []


def check_can_be_opened(path: Path) -> None:
    """Raise UserError when opening `path` never ends, or ends the process. Other damage is left to the caller."""
    with path.open("rb") as file:
        head, found = file.read(len(_SIGNATURE) + 1), os.fstat(file.fileno())
    state = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
    if head[:-1] != _SIGNATURE or head[-1] >= _HAS_CHECKSUMS or VARIABLE in os.environ or state in _opened:
        return
    helper = _helper()
    assert helper.stdin is not None
    assert helper.stdout is not None
    try:
        helper.stdin.write(json.dumps(os.fspath(path.absolute())) + "\n")
        helper.stdin.flush()
        answer = helper.stdout.readline()
    except BrokenPipeError:
        answer = ""
    if not answer:
        _end()
        raise UserError(f"{path} is damaged: opening it ends in an endless loop or a crash of the HDF5 library")
    _opened.add(state)


def _helper() -> "subprocess.Popen[str]":
    if not _helpers:
        _helpers.append(
            subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.hdf5_helper"],
                env={**os.environ, VARIABLE: "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        )
        atexit.register(_end)
    return _helpers[0]


def _end() -> None:
    """End the helper, which ends by itself when its input does."""
    while _helpers:
        helper = _helpers.pop()
        helper.kill()
        helper.communicate()
