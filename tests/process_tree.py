"""Processes below a process: who they are, and waiting until none is left."""

import os
import signal
import subprocess
import time
from pathlib import Path


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


def end(process: subprocess.Popen[str], ending: signal.Signals | str, code: int, timeout: float) -> None:
    """End a command of several processes: a signal to it, or kill -9 of it ("parent") or of one "worker".

    It leaves with `code`, says it where a worker went without a word, and leaves no process behind.
    """
    below = children(process.pid)
    if ending == "worker":
        os.kill(below[-1], signal.SIGKILL)
    elif ending == "parent":
        process.kill()
    else:
        process.send_signal(ending)
    _, err = process.communicate(timeout=timeout)
    assert process.returncode == code, err
    assert ("without a word" in err) == (ending == "worker"), err
    wait_for_end(below)
