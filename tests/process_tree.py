"""Processes below a process: who they are, and waiting until none is left."""

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
