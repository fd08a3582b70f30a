"""Python processes in which torch and titokctl are already imported: forks of one server process.

Imports take one to two seconds of processor time, and the suite starts hundreds of processes. A fork is a process of
its own in everything else: its arguments, environment, working folder, output and exit code, its exit handlers, the
processes that it starts. What imports do is tested elsewhere, in processes that are started afresh.

`CommandServer.python` is a program that takes the place of the interpreter: it has such a fork made for its arguments,
hands signals on to it, and ends as it ends. A SIGKILL of the one kills the other.
"""

import atexit
import contextlib
import gc
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
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

# Libraries read variables that start so while they are imported: a process with another value needs its own start.
_READ_AT_START = ("PYTHON", "LD_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "ONEDNN_", "MALLOC", "TORCH_")
# These are read later, or by other programs.
_READ_LATER = frozenset({"PYTHONPATH", "PYTHON_EXEC", "TORCH_CPP_LOG_LEVEL", "TORCH_NCCL_ASYNC_ERROR_HANDLING"})
# titokctl sets these itself before it imports torch; the server has the same values.
_SET = {"GOMP_SPINCOUNT": "1000"}
_SCRIPTS = ("__main__", "hdf5_helper")
_LONGEST = 1 << 17  # bytes of a request
_CLIENT = """#!{python} -IS
import array, json, os, signal, socket, sys

def hand_on(number, frame):
    try:
        os.kill(child, number)
    except ProcessLookupError:
        pass

with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
    server.connect({address!r})
    leads = os.getsid(0) == os.getpid()
    request = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ), leads]).encode()
    child = 0
    if len(request) < {longest}:
        server.sendmsg([request], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))])
        child = int(server.recv(64))
    if not child:
        os.execv({python!r}, [{python!r}, *sys.argv[1:]])
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, hand_on)
    with open("/proc/self/comm", "w") as name:
        name.write(str(child))  # for process_tree.children
    code = int(server.recv(64))
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
    os.kill(os.getpid(), -code)
os._exit(code)
"""


class CommandServer:
    """Starts Python processes as forks of a process that has imported titokctl; use it as a context.

    Args:
        root: the folder in which titokctl is found.
    """

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._environment = {**os.environ, "PYTHONPATH": self._root}

    def __enter__(self) -> "CommandServer":
        self._folder = TemporaryDirectory(prefix="titokctl-tests-")
        self._address = os.path.join(self._folder.name, "socket")
        self.python = os.path.join(self._folder.name, "python")
        Path(self.python).write_text(_CLIENT.format(python=sys.executable, address=self._address, longest=_LONGEST))
        Path(self.python).chmod(0o700)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
            listening.bind(self._address)
            listening.listen(64)
            self._held, theirs = socket.socketpair()  # when this end is closed, the server ends
            with theirs:
                numbers = [listening.fileno(), theirs.fileno()]
                words = [sys.executable, __file__, self._root, *map(str, numbers)]
                self._process = subprocess.Popen(
                    words, pass_fds=numbers, stdin=subprocess.DEVNULL, env=self._environment
                )
        return self

    def __exit__(self, *error: object) -> None:
        self._held.close()
        self._process.wait()
        self._folder.cleanup()

    def can_run(self, environment: Mapping[str, str]) -> bool:
        """Return False if a variable has another value that libraries read while they are imported."""
        return _can_run(environment, self._environment, self._root)

    def run(
        self, words: Sequence[str], folder: Path, environment: Mapping[str, str], patience: float
    ) -> tuple[int, str, str]:
        """Run `titokctl WORDS` in `folder`; return its exit code (negative for a signal), stdout and stderr.

        Raises subprocess.TimeoutExpired, after killing it, when it takes longer than `patience` seconds.
        """
        request = json.dumps([["-m", "titokctl", *words], str(folder), dict(environment), False]).encode()
        assert len(request) < _LONGEST
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as ours,
            TemporaryFile() as out,
            TemporaryFile() as err,
            open(os.devnull, "rb") as nothing,
        ):
            ours.connect(self._address)
            socket.send_fds(ours, [request], [nothing.fileno(), out.fileno(), err.fileno()])
            ours.settimeout(patience)
            child = int(ours.recv(64))
            assert child, "ask can_run before"
            try:
                code = int(ours.recv(64))
            except TimeoutError as error:
                raise subprocess.TimeoutExpired(list(words), patience) from error  # closing the socket kills it
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode().replace("\r\n", "\n"))
        return code, texts[0], texts[1]


def _can_run(environment: Mapping[str, str], own: Mapping[str, str], root: str) -> bool:
    if root not in environment.get("PYTHONPATH", root).split(os.pathsep):
        return False
    names = (environment.keys() | own.keys()) - _READ_LATER - _SET.keys()
    early = (name for name in names if name.startswith(_READ_AT_START))
    return all(environment.get(name) == own.get(name) for name in early)


def _serve(listening: socket.socket, held: socket.socket, own: Mapping[str, str], root: str) -> list[str]:
    """Fork a process for every request until `held` is closed at its other end.

    Returns only in the forks, with the words of the command.
    """
    waiting: dict[int, socket.socket] = {}  # of a process that runs: the connection that asked for it
    wake, woken = socket.socketpair()
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready, _, _ = select.select([listening, held, woken, *waiting.values()], [], [])
        if held in ready:
            for child in waiting:
                os.kill(child, signal.SIGKILL)
            os._exit(0)
        for child, one in waiting.items():
            if one in ready:  # whoever asked for it has ended
                os.kill(child, signal.SIGKILL)
        if woken in ready:
            woken.recv(4096)
            _tell_ended(waiting)
        if listening not in ready:
            continue
        one, _ = listening.accept()
        request, descriptors, _, _ = socket.recv_fds(one, _LONGEST, 3)
        if not request:
            one.close()
            continue
        words, folder, environment, leads = json.loads(request)
        child = os.fork() if _can_run(environment, own, root) else -1
        if child == 0:
            for each in (listening, held, wake, woken, one, *waiting.values()):
                each.close()
            _become(folder, environment, descriptors, leads, root)
            return list(words)
        for number in descriptors:
            os.close(number)
        one.sendall(b"%d" % max(child, 0))
        if child > 0:
            waiting[child] = one
        else:
            one.close()


def _tell_ended(waiting: dict[int, socket.socket]) -> None:
    while waiting:
        child, status = os.waitpid(-1, os.WNOHANG)
        if child == 0:
            return
        with waiting.pop(child) as one, contextlib.suppress(OSError):
            one.sendall(b"%d" % os.waitstatus_to_exitcode(status))


def _become(folder: str, environment: dict[str, str], descriptors: list[int], leads: bool, root: str) -> None:
    """Give this fork what a process gets when it is started."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if leads:
        os.setsid()
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    found = environment.get("PYTHONPATH", root).split(os.pathsep)
    place = sys.path.index(root)
    sys.path[place : place + 1] = found
    if any((Path(each) / "sitecustomize.py").exists() for each in found):
        sys.modules.pop("sitecustomize", None)
        importlib.import_module("sitecustomize")


def _import_modules() -> None:
    os.environ.update(_SET)  # before torch is imported
    import titokctl

    for module in pkgutil.walk_packages(titokctl.__path__, "titokctl."):
        if not module.name.endswith(_SCRIPTS):
            with contextlib.suppress(ImportError):  # of packages that not everybody has
                importlib.import_module(module.name)
    assert "huggingface_hub" not in sys.modules, "it reads variables while it is imported"


def _run(words: list[str]) -> None:
    """Do what the interpreter does with the arguments `words`."""
    if words[0] == "-u":
        sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]
        words = words[1:]
    if words[0] == "-m":
        sys.path[0], sys.argv = os.getcwd(), words[1:]
        if not hasattr(sys.modules.get(words[1]), "__path__"):
            sys.modules.pop(words[1], None)  # it becomes __main__
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.path[0], sys.argv = "", ["-c", *words[2:]]
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(words[1], "<string>", "exec"), main.__dict__)
    else:
        sys.path[0], sys.argv = os.path.dirname(os.path.abspath(words[0])), words
        runpy.run_path(words[0], run_name="__main__")


class _Exit:
    """Ends this process after all exit handlers: taking torch's modules apart takes longer than most commands.

    Its handler is registered before all others, so it is called last.
    """

    def __init__(self) -> None:
        self.code: int | None = None
        atexit.register(self._leave)

    def _leave(self) -> None:
        if self.code is None:
            return
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except (OSError, ValueError):
            return  # the interpreter reports it
        os._exit(self.code)


def _main(root: str, listening: int, held: int) -> None:
    own, end = dict(os.environ), _Exit()
    _import_modules()
    os.fsync = os.fstat  # type: ignore[assignment]  # as conftest.py
    gc.collect()
    gc.freeze()  # a collection in a fork would copy the memory of every object
    words = _serve(socket.socket(fileno=listening), socket.socket(fileno=held), own, root)
    try:
        _run(words)
    except SystemExit as leaving:
        end.code = leaving.code if isinstance(leaving.code, int) else None
        raise
    end.code = 0


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
