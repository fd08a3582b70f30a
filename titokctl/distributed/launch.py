"""Starting a command in several processes: the same command line is run again, under torchrun.

The launcher remains the parent process: it forwards signals to the workers, shows their error once, and exits with
their exit code, where torchrun always returns 1.
"""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from titokctl.distributed.place import adopt_slurm, available_cores, has_trainer, is_placed
from titokctl.distributed.stop import is_ignored
from titokctl.distributed.worker import ALIVE, EXIT_CODES, FAILED, FOLDER, ORDERLY, STOP
from titokctl.errors import EXIT_INTERRUPTED, EXIT_STOPPED, Stopped, UsageError, UserError
from titokctl.readable import counted

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
_POLL_S = 0.1
_FAILURE_GRACE_S = 2.0  # after a failure, until the other workers are killed
_LEFT_GRACE_S = 30.0  # after one left before any work, until those that wait for it are killed
# glibc returns large blocks to the system at once, and the next step fetches them again, page by page. Workers keep
# them, in large pages: a step on a CPU took 6 to 13 % less time. Ignored by other C libraries.
_KEEPS_MEMORY = ":".join(
    f"glibc.malloc.{name}={value}"
    for name, value in (("hugetlb", 1), ("mmap_threshold", 1 << 30), ("trim_threshold", 4 << 30))
)
_SAVING_S = 300  # how long torchrun waits for workers that save after a signal


@dataclass(frozen=True)
class Nodes:
    """The machines of a run: how many, the rank of this one (None: torchrun assigns it), host:port of the first."""

    count: int = 1
    rank: int | None = None
    endpoint: str | None = None


def relaunch(gpus: str | None, procs: int | None, nodes: Nodes | None = None, otherwise: str | None = None) -> bool:
    """Run this command line in several processes, if requested and if this is not one of them.

    Args:
        gpus: "all" or a number: this many processes, each with a GPU.
        procs: this many processes on the CPU.
        nodes: set if the same command is started on several machines.
        otherwise: value for `gpus` if neither the command line nor a cluster gives the number of processes.

    Returns:
        True if workers have finished the command; False if this process must do the work (as a worker, or alone).

    Raises:
        UsageError: the processes can't be started.
        UserError, Stopped: as the workers ended.
    """
    nodes = nodes or Nodes()
    is_asked = gpus is not None or procs is not None
    if not is_asked and nodes.count == 1:
        adopt_slurm(os.environ)
    if is_placed(os.environ):
        return False
    has_others = nodes.count > 1 or os.environ.get("PET_NNODES", "1") not in ("1", "1:1")
    if not is_asked and has_trainer(os.environ):
        from torch.distributed.run import determine_local_world_size

        # The number of processes that a Kubernetes trainer requests on this machine, as torchrun reads it.
        count = determine_local_world_size(os.environ.get("PET_NPROC_PER_NODE", "1"))
    else:
        count = processes_here(gpus if is_asked else otherwise, procs)
    if count == 1 and not has_others:
        return False
    run_workers(["-m", "titokctl", *sys.argv[1:]], count, nodes)
    return True


def run_workers(command: list[str], count: int, nodes: Nodes | None = None, stdout: int | None = None) -> None:
    """Run `python <command>` in `count` processes on this machine and wait until they end.

    Args:
        command: must call `worker.started` and `worker.ended`, as the command line does.
        stdout: as for subprocess.Popen; by default the workers share this process's stdout.

    Raises:
        UserError, Stopped: as the workers ended.
    """
    with tempfile.TemporaryDirectory(prefix="titokctl-") as name:
        folder = Path(name)
        with (folder / ALIVE).open("w") as alive:
            fcntl.flock(alive, fcntl.LOCK_EX)  # the kernel releases it when this process ends in any way
            arguments = [*_torchrun_arguments(count, nodes or Nodes()), f"--log-dir={folder}", *command]
            silent = _run(folder, count, arguments, stdout)
        _raise_for(folder, count, silent)


def processes_here(gpus: str | None, procs: int | None, dry: bool = False) -> int:
    """Return the number of processes that the two options request on this machine; 1 without them.

    Args:
        dry: the processes will not be started, so this machine, such as a login node, may have fewer GPUs than N.

    Raises:
        UsageError: both are given, a value is not a number, or there are fewer GPUs.
    """
    if gpus is not None and procs is not None:
        raise UsageError("--gpus and --procs are mutually exclusive", "--procs is for processes on the CPU")
    if procs is not None:
        if procs < 1:
            raise UsageError(f"--procs must be at least 1, not {procs}")
        return procs
    if gpus is None:
        return 1
    if gpus != "all" and not (gpus.isascii() and gpus.isdigit() and int(gpus) > 0):
        raise UsageError(f"--gpus must be a positive number or all, not {gpus!r}")
    if dry and gpus != "all":
        return int(gpus)
    import torch

    here = torch.cuda.device_count()
    wanted = here if gpus == "all" else int(gpus)
    if wanted > here or not here:
        raise UsageError(f"--gpus {gpus}: this machine has {here} usable GPUs", "--procs N runs N processes on the CPU")
    return wanted


def _torchrun_arguments(count: int, nodes: Nodes) -> list[str]:
    words = [f"--nproc-per-node={count}", "--max-restarts=0"]
    if nodes.count == 1:
        if not has_trainer(os.environ):  # otherwise torchrun reads the rest from the trainer's variables
            words += ["--standalone", "--local-addr=127.0.0.1"]
        return words + signal_options()
    if nodes.endpoint is None:
        raise UsageError("--nodes needs --rdzv-endpoint", "host:port of the first node, the same on every node")
    words += [f"--nnodes={nodes.count}", f"--rdzv-endpoint={nodes.endpoint}"]
    if nodes.rank is None:
        return [*words, "--rdzv-backend=c10d", "--rdzv-id=titokctl", *signal_options()]
    host, _, port = nodes.endpoint.rpartition(":")
    static = ["--rdzv-backend=static", f"--node-rank={nodes.rank}", f"--master-addr={host}", f"--master-port={port}"]
    return words + static + signal_options()


def signal_options() -> list[str]:
    """Return torchrun's options for signals, which the oldest supported releases of torch lack."""
    from torch.distributed.run import get_args_parser

    known = {option for action in get_args_parser()._actions for option in action.option_strings}
    wanted = {"--signals-to-handle": "SIGTERM,SIGINT,SIGUSR1,SIGHUP", "--shutdown-timeout": str(_SAVING_S)}
    return [f"{option}={value}" for option, value in wanted.items() if option in known]


def _run(folder: Path, count: int, arguments: list[str], stdout: int | None) -> list[int]:
    """Start torchrun and wait until it ends; the workers report to files in `folder`.

    Returns:
        local ranks of workers that died without a report before any other worker failed.
    """
    environment = {**os.environ, FOLDER: str(folder)}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // count)))
    environment.setdefault("GLIBC_TUNABLES", _KEEPS_MEMORY)
    environment.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a lost connection is reported by our own message
    python = os.environ.get("PYTHON_EXEC", sys.executable)  # the interpreter that torchrun starts the workers with
    words = [python, "-m", "titokctl.distributed.agent", *arguments]
    with _forwarding(folder):
        # In a session of its own: Ctrl-C on a terminal reaches only the launcher, which signals the workers once.
        agent = subprocess.Popen(words, env=environment, stdout=stdout, start_new_session=True)
        failed_at, left_at, silent = 0.0, 0.0, list[int]()
        while agent.poll() is None:
            time.sleep(_POLL_S)
            if not failed_at and (_failures(folder) or _gone(folder)):
                # A killed process is the cause, also if another one has already reported the connection that it lost.
                failed_at, silent = time.monotonic(), _gone(folder)
            if failed_at and time.monotonic() - failed_at > _FAILURE_GRACE_S:
                _signal_workers(folder, signal.SIGKILL)
            left_at = left_at or (time.monotonic() if _left_early(folder) else 0.0)
            if left_at and time.monotonic() - left_at > _LEFT_GRACE_S:
                _signal_workers(folder, signal.SIGKILL)
    if not failed_at and not (folder / STOP).exists() and not _failures(folder):
        silent = _gone(folder)  # torchrun noticed first and has stopped the others
    codes = _exit_codes(folder)
    return [rank for rank in silent if codes.get(rank) != -signal.SIGTERM]  # torchrun stops the others with SIGTERM


@contextlib.contextmanager
def _forwarding(folder: Path) -> Iterator[None]:
    """Forward signals to the workers, including those that have not started yet."""

    def forward(number: int, frame: FrameType | None) -> None:
        (folder / STOP).write_text(str(number))
        _signal_workers(folder, signal.Signals(number))

    handled = [number for number in _SIGNALS if number != signal.SIGHUP or not is_ignored(number)]
    previous = {number: signal.signal(number, forward) for number in handled}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _signal_workers(folder: Path, number: signal.Signals) -> None:
    for path in folder.glob("*.pid"):
        if not path.with_suffix(".json").exists():
            with contextlib.suppress(ProcessLookupError, ValueError):
                os.kill(int(path.read_text()), number)


def _failures(folder: Path) -> list[dict[str, Any]]:
    """Return the reports of failed workers, earliest first; later failures may be consequences of it."""
    return [record for record in _records(folder) if record["code"] not in ORDERLY]


def _left_early(folder: Path) -> bool:
    """Return True if a worker ended on a signal with nothing to save: others may wait for it and ignore signals."""
    codes = (EXIT_STOPPED, EXIT_INTERRUPTED)
    return (folder / STOP).exists() and any(
        record["code"] in codes and not record["message"] for record in _records(folder)
    )


def _gone(folder: Path) -> list[int]:
    """Return the local ranks of workers that died without a report."""
    return sorted(int(path.stem) for path in folder.glob("*.pid") if _is_gone(path))


def _is_gone(path: Path) -> bool:
    try:
        pid = int(path.read_text())
        os.kill(pid, 0)
    except ProcessLookupError:
        return not path.with_suffix(".json").exists()
    except ValueError:
        return False  # the file is being written
    return _is_zombie(pid) and not path.with_suffix(".json").exists()


def _is_zombie(pid: int) -> bool:
    """Return True for a process that has ended but was not yet waited for by its parent; only Linux shows it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (OSError, IndexError):
        return False


def _exit_codes(folder: Path) -> dict[int, int]:
    """Return what torchrun saw of the workers that failed: exit codes by local rank, minus the number of a signal."""
    path = folder / EXIT_CODES
    return {int(rank): code for rank, code in json.loads(path.read_text()).items()} if path.exists() else {}


def _records(folder: Path) -> list[dict[str, Any]]:
    records = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    return sorted(records, key=lambda record: record["time"])


def _raise_for(folder: Path, count: int, silent: list[int]) -> None:
    """Raise the first failure of the workers, otherwise their stop, if any."""
    reported = {int(path.stem) for path in folder.glob("*.json")}
    asked = int((folder / STOP).read_text()) if (folder / STOP).exists() else None
    failures = _failures(folder)
    if failures and not silent:
        raise UserError(failures[0]["message"], failures[0]["hint"], failures[0]["code"])
    # If one died without a signal from the user, the others were stopped because of it.
    for record in _records(folder) if asked is not None or not silent else ():
        if record["code"] in (EXIT_STOPPED, EXIT_INTERRUPTED):
            raise Stopped(record["code"], record["message"])
    if len(reported) == count:
        return
    if asked is not None:
        raise Stopped(EXIT_INTERRUPTED if asked == signal.SIGINT else EXIT_STOPPED, "No work had been started.")
    if (folder / FAILED).exists() and not silent:
        raise UserError(
            f"the processes can't be started together: {(folder / FAILED).read_text()}",
            "raise the limits of open files and of processes, e.g. ulimit -n 4096, and check the network",
        )
    missing = silent or sorted(set(range(count)) - reported)
    raise _death(missing, count, _exit_codes(folder))


def _death(missing: list[int], count: int, codes: dict[int, int]) -> UserError:
    """Return the error for workers, by local rank, that ended without a report."""
    which = f"rank {missing[0]}" if len(missing) == 1 else f"ranks {', '.join(map(str, missing))}"
    signals = {-codes[rank] for rank in missing if codes.get(rank, 0) < 0}
    if not signals or signals == {signal.SIGKILL}:
        how = "was killed by the system (SIGKILL)" if signals else "died without an error message"
        return UserError(
            f"{which} of {counted(count, 'processes')} {how}",
            "most often the memory was full, which `dmesg` shows; use fewer processes or a smaller batch, and run the "
            "same command again to resume",
        )
    names = ", ".join(sorted(signal.Signals(number).name for number in signals))
    return UserError(
        f"{which} of {counted(count, 'processes')} crashed ({names})",
        "run the same command again to resume; put PYTHONFAULTHANDLER=1 before it to see where it crashes",
    )
