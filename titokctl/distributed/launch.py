"""Starting a command in several processes: the same command line again, under torchrun.

The launcher stays the parent: it hands signals to the workers, shows their errors once, and leaves with the exit code
they would have left with, which torchrun turns into 1.
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

from titokctl.distributed.place import adopt_slurm, has_trainer, is_placed
from titokctl.distributed.worker import ALIVE, FOLDER, ORDERLY, STOP
from titokctl.errors import EXIT_INTERRUPTED, EXIT_STOPPED, Stopped, UsageError, UserError

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_LOOK_EVERY_S = 0.1
_FAILURE_GRACE_S = 2.0  # for the others to find out by themselves, before they are killed
_SAVING_S = 300  # torchrun's patience with workers that save after a signal


@dataclass(frozen=True)
class Nodes:
    """Several machines: how many, which one this is (None: they find out), and host:port of the first."""

    count: int = 1
    rank: int | None = None
    endpoint: str | None = None


def relaunch(gpus: str | None, procs: int | None, nodes: Nodes | None = None, otherwise: str | None = None) -> bool:
    """Run this command line in several processes if that was asked for and has not happened yet.

    Args:
        gpus: "all" or a number: that many processes with a GPU each; procs: that many processes on the CPU.
        nodes: when the same command is started on several machines.
        otherwise: `gpus` where neither the command line nor a cluster says how many processes are wanted.

    Returns:
        True when workers have done the command's work; False when this process is to do it (itself a worker, or alone).

    Raises: UsageError for what can't be started; UserError and Stopped as the workers ended.
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

        # How many processes a Kubernetes trainer wants on this machine, as torchrun reads it.
        count = determine_local_world_size(os.environ.get("PET_NPROC_PER_NODE", "1"))
    else:
        count = processes_here(gpus if is_asked else otherwise, procs)
    if count == 1 and not has_others:
        return False
    run_workers(["-m", "titokctl", *sys.argv[1:]], count, nodes)
    return True


def run_workers(command: list[str], count: int, nodes: Nodes | None = None, stdout: int | None = None) -> None:
    """Run `python <command>` in `count` processes of this machine and wait for their end.

    Their stdout is ours, or what subprocess takes for `stdout` (DEVNULL). They call `worker.started` and
    `worker.ended`, as the command line does.

    Raises: UserError and Stopped as the workers ended.
    """
    with tempfile.TemporaryDirectory(prefix="titokctl-") as name:
        folder = Path(name)
        with (folder / ALIVE).open("w") as alive:
            fcntl.flock(alive, fcntl.LOCK_EX)  # the kernel frees it when this process ends, however it does
            silent = _run(folder, count, [*_torchrun_arguments(count, nodes or Nodes()), *command], stdout)
        _raise_for(folder, count, silent)


def processes_here(gpus: str | None, procs: int | None) -> int:
    """How many processes the two options ask for on this machine; 1 without them.

    Raises: UsageError for options that exclude each other, are no numbers, or want more GPUs than there are.
    """
    if gpus is not None and procs is not None:
        raise UsageError("--gpus and --procs exclude each other", "--procs is for processes on the CPU")
    if procs is not None:
        if procs < 1:
            raise UsageError(f"--procs {procs}: at least one process is needed")
        return procs
    if gpus is None:
        return 1
    if gpus != "all" and not (gpus.isascii() and gpus.isdigit() and int(gpus) > 0):
        raise UsageError(f"--gpus {gpus!r} is neither a number nor all")
    import torch

    here = torch.cuda.device_count()
    wanted = here if gpus == "all" else int(gpus)
    if wanted > here or not here:
        raise UsageError(f"--gpus {gpus}: this machine has {here} usable GPUs", "--procs N runs N processes on the CPU")
    return wanted


def _torchrun_arguments(count: int, nodes: Nodes) -> list[str]:
    words = [f"--nproc-per-node={count}", "--max-restarts=0"]
    if nodes.count == 1:
        if not has_trainer(os.environ):  # else torchrun takes the trainer's variables for what is not said here
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
    """Newer than some supported releases of torch."""
    from torch.distributed.run import get_args_parser

    known = {option for action in get_args_parser()._actions for option in action.option_strings}
    wanted = {"--signals-to-handle": "SIGTERM,SIGINT,SIGUSR1", "--shutdown-timeout": str(_SAVING_S)}
    return [f"{option}={value}" for option, value in wanted.items() if option in known]


def _run(folder: Path, count: int, arguments: list[str], stdout: int | None) -> list[int]:
    """Start torchrun and wait for its end; what the workers say is in `folder`.

    Returns the local ranks of workers that ended without a word before any other failed.
    """
    environment = {**os.environ, FOLDER: str(folder)}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // count)))
    environment.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a lost connection is told in our words, without C++ frames
    words = [sys.executable, "-m", "titokctl.distributed.agent", *arguments]
    with _forwarding(folder):
        # A session of its own: Ctrl-C on a terminal reaches the launcher alone, which tells the workers once.
        agent = subprocess.Popen(words, env=environment, stdout=stdout, start_new_session=True)
        failed_at, silent = 0.0, list[int]()
        while agent.poll() is None:
            time.sleep(_LOOK_EVERY_S)
            if not failed_at and (_failures(folder) or _gone(folder)):
                failed_at, silent = time.monotonic(), [] if _failures(folder) else _gone(folder)
            if failed_at and time.monotonic() - failed_at > _FAILURE_GRACE_S:
                _signal_workers(folder, signal.SIGKILL)
    if not failed_at and not (folder / STOP).exists() and not _failures(folder):
        silent = _gone(folder)  # torchrun was quicker: it has told the others to stop
    return silent


@contextlib.contextmanager
def _forwarding(folder: Path) -> Iterator[None]:
    """Hand signals to the workers, also to those that are not up yet."""

    def forward(number: int, frame: FrameType | None) -> None:
        (folder / STOP).write_text(str(number))
        _signal_workers(folder, signal.Signals(number))

    previous = {number: signal.signal(number, forward) for number in _SIGNALS}
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
    """What workers say that failed, the first one first; later ones may follow from it."""
    return [record for record in _records(folder) if record["code"] not in ORDERLY]


def _gone(folder: Path) -> list[int]:
    """Local ranks of workers that ended without a word."""
    return sorted(int(path.stem) for path in folder.glob("*.pid") if _is_gone(path))


def _is_gone(path: Path) -> bool:
    try:
        os.kill(int(path.read_text()), 0)
    except ProcessLookupError:
        return not path.with_suffix(".json").exists()
    except ValueError:
        pass  # it is being written
    return False


def _records(folder: Path) -> list[dict[str, Any]]:
    records = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    return sorted(records, key=lambda record: record["time"])


def _raise_for(folder: Path, count: int, silent: list[int]) -> None:
    """Leave as the workers did: the first failure, else a stop, else nothing."""
    told = {int(path.stem) for path in folder.glob("*.json")}
    asked = int((folder / STOP).read_text()) if (folder / STOP).exists() else None
    failures = _failures(folder)
    if failures and not silent:
        raise UserError(failures[0]["message"], failures[0]["hint"], failures[0]["code"])
    # When one is gone unasked, the others were told to stop because of it.
    for record in _records(folder) if asked is not None or not silent else ():
        if record["code"] in (EXIT_STOPPED, EXIT_INTERRUPTED):
            raise Stopped(record["code"], record["message"])
    if len(told) == count:
        return
    if asked is not None:
        raise Stopped(EXIT_INTERRUPTED if asked == signal.SIGINT else EXIT_STOPPED, "The work had not begun.")
    missing = silent or sorted(set(range(count)) - told)
    raise UserError(
        f"process {', '.join(map(str, missing))} of {count} ended without a word",
        "the system may have killed it for its memory (see dmesg); use fewer processes or a smaller batch",
    )
