"""A process that runs commands in forks of itself, each with one system call that fails (`shim.c`).

It imports everything once, so that hundreds of commands take minutes and not hours. Requests are lines of JSON on
stdin, answers are lines of JSON on stdout.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

import h5py  # noqa: F401
import torch

from titokctl.cli import app

_CPU_S = 60
_POLL_S = 0.02


def serve() -> None:
    """Answer requests until stdin ends."""
    app.register_commands()
    for module in (
        "sample.request",
        "tokenize.request",
        "train.generator",
        "train.tokenizer",
        "evaluate.fid",
        "decode",
    ):
        __import__(f"titokctl.jobs.{module}")
    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(_forked(request)), flush=True)


def _forked(request: dict) -> dict:
    count = Path(request["cwd"]) / ".." / "count"
    child = os.fork()
    if child == 0:
        _child(request, count)
    status, usage = _waited(child, request.get("seconds", 120))
    code = os.waitstatus_to_exitcode(status)
    counted = json.loads(count.read_text()) if count.is_file() else {}
    count.unlink(missing_ok=True)
    if "rank" in request:
        _wait_for_workers(request["cwd"])
    return {"code": code, "count": counted, "peak_kb": usage.ru_maxrss}


def _waited(child: int, seconds: float) -> tuple[int, resource.struct_rusage]:
    """Wait for a process, and end it when it takes too long."""
    end = time.monotonic() + seconds
    while True:
        found, status, usage = os.wait4(child, os.WNOHANG)
        if found:
            return status, usage
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
        time.sleep(_POLL_S)


def _wait_for_workers(folder: str) -> None:
    """Wait until no process runs that a command in `folder` started; those of a killed launcher end by themselves."""
    mark = b"TITOKCTL_SHIM="
    while True:
        running = 0
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                variables = path.read_bytes().split(b"\0")
                running += any(v.startswith(mark) and v.endswith(b" " + os.fsencode(folder)) for v in variables)
        if not running:
            return
        time.sleep(_POLL_S)


def _child(request: dict, count: Path) -> None:
    os.chdir(request["cwd"])
    for number, name in ((0, os.devnull), (1, "../stdout"), (2, "../stderr")):
        os.dup2(os.open(name, os.O_RDWR | (os.O_CREAT | os.O_TRUNC if number else 0), 0o600), number)
    resource.setrlimit(resource.RLIMIT_CPU, (request.get("cpu_s", _CPU_S), _CPU_S * 4))
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
    shim = ctypes.CDLL(os.environ["LD_PRELOAD"]) if "LD_PRELOAD" in os.environ else None
    if "rank" in request:
        sys.argv = ["titokctl", *request["words"]]  # what the launcher starts again as workers
        target = os.getpid() if request["launcher"] else 0
        fault = f"{request['rank']} {request['kind']} {request['call']} {request['errno']} {target} {os.getcwd()}"
        os.environ["TITOKCTL_SHIM"] = fault
    elif shim is not None and request.get("kind"):
        shim.fault_set(os.getcwd().encode(), request["kind"].encode(), ctypes.c_long(request["call"]), request["errno"])
    code = 70
    try:
        code = app.run(request["words"])
    finally:
        if shim is not None:
            shim.fault_count.restype = ctypes.c_long
            counted = {kind: shim.fault_count(kind.encode()) for kind in request.get("kinds", ())}
            shim.fault_set(b"", b"", ctypes.c_long(-1), 0)
            count.write_text(json.dumps(counted))
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
