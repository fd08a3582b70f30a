"""Holds a process that a test is about to end at the state the test waits for, however fast the machine is.

Python imports this when it starts with this folder in PYTHONPATH; processes below it inherit that. TITOKCTL_TESTS_HELD
is a folder, a pattern and a number, in lines: once as many files of the folder fit the pattern, none is renamed to
such a name any more before a signal has come. What appears whole is renamed into place (formats/atomic.py), so whoever
has seen the files can count on work that is left.
"""

import os
import select
import signal
import sys
from fnmatch import fnmatch
from pathlib import Path

_FOLDER, _PATTERN, _COUNT = os.environ["TITOKCTL_TESTS_HELD"].split("\n")
# Whatever Python handles is written here too, in the moment it comes, whichever thread waits. Nothing is read again.
_READ, _WRITE = os.pipe()
os.set_blocking(_WRITE, False)
signal.set_wakeup_fd(_WRITE, warn_on_full_buffer=False)


def _hold(event: str, arguments: tuple) -> None:
    if event != "os.rename" or not fnmatch(os.path.abspath(arguments[1]), os.path.join(_FOLDER, _PATTERN)):
        return
    if len(list(Path(_FOLDER).glob(_PATTERN))) >= int(_COUNT):
        select.select([_READ], [], [])


sys.addaudithook(_hold)
