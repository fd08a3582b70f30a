"""Runs of the command line as processes in which torch and titokctl are already imported: forks of one server process.

Imports take one to two seconds of processor time, and the suite runs hundreds of commands. A fork is a process of its
own in everything else: its arguments, environment, working folder, output and exit code, its exit handlers, the
processes that it starts. What imports do is tested elsewhere, in processes that are started afresh.
"""

import contextlib
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile

# Libraries read variables that start so while they are imported: a command with another value needs its own start.
_READ_AT_START = ("PYTHON", "LD_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "ONEDNN_", "MALLOC", "HF_", "TORCH_")
_SCRIPTS = ("__main__", "hdf5_helper")
_LONGEST = 1 << 20  # bytes of a request


class CommandServer:
    """Starts `titokctl` commands as forks of a process that has imported their packages; use it as a context.

    Args:
        root: the folder in which titokctl is found.
    """

    def __init__(self, root: Path) -> None:
        self._environment = {**os.environ, "PYTHONPATH": str(root)}

    def __enter__(self) -> "CommandServer":
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        words = [sys.executable, __file__, str(theirs.fileno())]
        self._process = subprocess.Popen(
            words, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=self._environment
        )
        theirs.close()
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.close()
        self._process.wait()

    def can_run(self, environment: Mapping[str, str]) -> bool:
        """Return False if a variable has another value that libraries read while they are imported."""
        names = environment.keys() | self._environment.keys()
        early = (name for name in names if name.startswith(_READ_AT_START))
        return all(environment.get(name) == self._environment.get(name) for name in early)

    def run(
        self, words: Sequence[str], folder: Path, environment: Mapping[str, str], patience: float
    ) -> tuple[int, str, str]:
        """Run `titokctl WORDS` in `folder`; return its exit code (negative for a signal), stdout and stderr.

        Raises subprocess.TimeoutExpired, after killing it, when it takes longer than `patience` seconds.
        """
        request = json.dumps([list(words), str(folder), dict(environment)]).encode()
        assert len(request) < _LONGEST
        ours, theirs = socket.socketpair()
        with ours, TemporaryFile() as out, TemporaryFile() as err:
            with theirs:
                socket.send_fds(self._socket, [request], [out.fileno(), err.fileno(), theirs.fileno()])
            ours.settimeout(patience)
            lines = ours.makefile()
            child = int(lines.readline())
            try:
                code = int(lines.readline())
            except TimeoutError as error:
                os.kill(child, signal.SIGKILL)
                raise subprocess.TimeoutExpired(list(words), patience) from error
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode().replace("\r\n", "\n"))
        return code, texts[0], texts[1]


def _serve(requests: socket.socket) -> list[str]:
    """Fork a process for every request until there are no more.

    Returns only in the forks, with the words of the command.
    """
    waiting: dict[int, socket.socket] = {}
    wake, woken = socket.socketpair()
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready, _, _ = select.select([requests, woken], [], [])
        if woken in ready:
            woken.recv(4096)
            _tell_ended(waiting)
        if requests not in ready:
            continue
        request, descriptors, _, _ = socket.recv_fds(requests, _LONGEST, 3)
        if not request:
            for child in waiting:
                os.kill(child, signal.SIGKILL)
            os._exit(0)
        words, folder, environment = json.loads(request)
        out, err, answers = descriptors
        child = os.fork()
        if child == 0:
            _become(folder, environment, out, err)
            for one in (requests, wake, woken, *waiting.values()):
                one.close()
            os.close(answers)
            return list(words)
        for number in (out, err):
            os.close(number)
        waiting[child] = socket.socket(fileno=answers)
        waiting[child].sendall(b"%d\n" % child)


def _tell_ended(waiting: dict[int, socket.socket]) -> None:
    while waiting:
        child, status = os.waitpid(-1, os.WNOHANG)
        if child == 0:
            return
        with waiting.pop(child) as answers:
            answers.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))


def _become(folder: str, environment: dict[str, str], out: int, err: int) -> None:
    """Give this fork what a process gets when it is started."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    for number, descriptor in ((1, out), (2, err)):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[0] = folder


def _import_modules() -> None:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as titokctl itself, before torch is imported
    import titokctl

    for module in pkgutil.walk_packages(titokctl.__path__, "titokctl."):
        if not module.name.endswith(_SCRIPTS):
            with contextlib.suppress(ImportError):  # of packages that not everybody has
                importlib.import_module(module.name)


if __name__ == "__main__":
    _import_modules()
    sys.argv = ["titokctl", *_serve(socket.socket(fileno=int(sys.argv[1])))]
    runpy.run_module("titokctl", run_name="__main__", alter_sys=True)
