"""Processes that are ended in the middle of their work: by a signal, or with all processes below them."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from command_line import PATIENCE_S, ROOT

_HELD = Path(__file__).with_name("held")


def held(folder: Path, pattern: str, count: int) -> dict[str, str]:
    """Environment variables that let a command wait for a signal before more than `count` files fit in `folder`.

    Each of its processes does, so that a signal reaches them in the middle of their work (tests/held).
    """
    return {"PYTHONPATH": f"{_HELD}{os.pathsep}{ROOT}", "TITOKCTL_TESTS_HELD": f"{folder}\n{pattern}\n{count}"}


def wait_for_files(process: subprocess.Popen[str], folder: Path, pattern: str, count: int) -> None:
    """Wait until `count` files fit `pattern` in `folder`; fails when `process` ends before."""
    until = time.monotonic() + PATIENCE_S
    while len(list(folder.glob(pattern))) < count:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.005)


def signalled(
    python: str, words: list[str], number: signal.Signals, folder: Path, pattern: str, count: int, packages: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a command of one process that is sent the signal `number` once `count` files fit `pattern` in `folder`.

    `packages` are more folders in which it finds packages, as in PYTHONPATH.
    """
    command = [python, "-m", "titokctl", *words]
    environment = {**os.environ, **held(folder, pattern, count)}
    environment["PYTHONPATH"] += f"{os.pathsep}{packages}" if packages else ""
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as one:
        try:
            wait_for_files(one, folder, pattern, count)
            one.send_signal(number)
            out, err = one.communicate(timeout=PATIENCE_S)
        finally:
            one.kill()
    return subprocess.CompletedProcess(command, one.returncode, out, err)


def children(process: int) -> list[int]:
    """All processes below `process`, the deepest last; [] when it is gone.

    What command_server.py forks is below the program that asked for it, whose name is its number.
    """
    try:
        below = [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
        name = Path(f"/proc/{process}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return []
    below += [int(name)] if name.isdecimal() else []
    return below + [deeper for child in below for deeper in children(child)]


def wait_for_end(processes: list[int], patience: float = PATIENCE_S) -> None:
    """Wait until none of `processes` runs any more; fails when one still does after `patience` seconds."""
    until = time.monotonic() + patience
    while not all(has_ended(process) for process in processes):
        assert time.monotonic() < until, "processes were left behind"
        time.sleep(0.05)


def has_ended(process: int) -> bool:
    """Whether the process is gone, or only waits to be asked how it ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def end(
    start: Callable[..., subprocess.Popen[str]], python: str, words: list[str], ending: signal.Signals | str,
    code: int, folder: Path, pattern: str, count: int,
) -> None:  # fmt: skip
    """Run a command of several processes, and end it once `count` more files than now fit `pattern` in `folder`.

    By a signal to it, or kill -9 of it ("parent") or of one "worker". It leaves with `code`, says it where a worker
    went without a word, leaves no process behind, and the files that were there as they were.
    """
    before = {path: path.stat().st_mtime_ns for path in folder.glob(pattern)}
    count += len(before)
    environment = {**os.environ, **held(folder, pattern, count), "OMP_NUM_THREADS": "1"}
    process = start([python, "-m", "titokctl", *words], env=environment)
    wait_for_files(process, folder, pattern, count)
    below = children(process.pid)
    if ending == "worker":
        os.kill(below[-1], signal.SIGKILL)
    elif ending == "parent":
        process.kill()
    else:
        process.send_signal(ending)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code, err
    assert ("was killed by the system" in err) == (ending == "worker"), err
    wait_for_end(below)
    assert all(path.stat().st_mtime_ns == changed for path, changed in before.items()), "what is finished is kept"
