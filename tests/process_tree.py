"""Processes that are ended in the middle of their work: by a signal, or with all processes below them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from command_line import ROOT

# Runs the command line and, from a thread of the same process, sends a signal to it once so many files are there.
_DRIVER = """
import os, sys, threading, time
from pathlib import Path

def watch(folder, pattern, count, number):
    while len(list(folder.glob(pattern))) < count:
        time.sleep(0.0005)
    os.kill(os.getpid(), number)

folder, pattern, count, number, *words = sys.argv[1:]
threading.Thread(target=watch, args=(Path(folder), pattern, int(count), int(number)), daemon=True).start()
from titokctl.cli.app import run
sys.exit(run(words))
"""

_PATIENCE_S = 120


def signalled(
    words: list[str], number: signal.Signals, folder: Path, pattern: str, count: int
) -> subprocess.CompletedProcess:
    """Run a command as a process that sends itself the signal `number` once `count` files fit `pattern` in `folder`."""
    return subprocess.run(
        [sys.executable, "-c", _DRIVER, str(folder), pattern, str(count), str(int(number)), *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def children(process: int) -> list[int]:
    """All processes below `process`, the deepest last; [] when it is gone."""
    try:
        below = [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return below + [deeper for child in below for deeper in children(child)]


def wait_for_end(processes: list[int], patience: float = 60) -> None:
    """Wait until none of `processes` runs any more; fails when one still does after `patience` seconds."""
    until = time.monotonic() + patience
    while not all(_has_ended(process) for process in processes):
        assert time.monotonic() < until, "processes were left behind"
        time.sleep(0.05)


def _has_ended(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def end(
    start: Callable[..., subprocess.Popen[str]], words: list[str], ending: signal.Signals | str, code: int,
    files: Callable[[], list[Path]], count: int,
) -> None:  # fmt: skip
    """Run a command of several processes, and end it once it has made `count` of its `files`, beside those there.

    By a signal to it, or kill -9 of it ("parent") or of one "worker". It leaves with `code`, says it where a worker
    went without a word, leaves no process behind, and the files that were there as they were.
    """
    before = {path: path.stat().st_mtime_ns for path in files()}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = start([sys.executable, "-m", "titokctl", *words], env=environment)
    until = time.monotonic() + _PATIENCE_S
    while len(files()) < len(before) + count:
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.001)
    below = children(process.pid)
    if ending == "worker":
        os.kill(below[-1], signal.SIGKILL)
    elif ending == "parent":
        process.kill()
    else:
        process.send_signal(ending)
    _, err = process.communicate(timeout=_PATIENCE_S)
    assert process.returncode == code, err
    assert ("without a word" in err) == (ending == "worker"), err
    wait_for_end(below)
    assert all(path.stat().st_mtime_ns == changed for path, changed in before.items()), "what is finished is kept"
