"""Decoding in processes of our own, one image file after the other, with results in shared memory.

They are started as plain Python processes, neither forked (a process with threads or a GPU must not be) nor by
`multiprocessing` (which would run the caller's main module again).
"""

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
from collections.abc import Sequence

import numpy as np

from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.data.decoding import Bad, SharedTask
from titokctl.errors import UserError

_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from titokctl.data.decoding import main; main()"
_FILE_BYTES = 4 << 20  # of a task, at first
# One thread each, and memory that is kept from image to image: fetching it anew costs as much as the resize.
_SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(128 << 20),
}
_END_WITHIN_S = 5.0


class DecodeProcesses:
    """As many decoding processes as there are threads that ask at once; each starts when it is needed first.

    Args:
        configs: the squares to make of every file.
    """

    def __init__(self, configs: Sequence[PreprocessingConfig]) -> None:
        self._configs = list(configs)
        self._idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        self._all: list[_Process] = []

    def decode(self, files: Sequence[bytes], into: Sequence[np.ndarray]) -> list[Bad]:
        """As `decode_files`, for at most CHUNK files, by one of the processes.

        Raises:
            UserError: the process ended.
        """
        try:
            process = self._idle.get_nowait()
        except queue.Empty:
            process = _Process(self._configs)
            self._all.append(process)
        bad = process.decode(files, into)
        self._idle.put(process)
        return bad

    def close(self) -> None:
        """End them."""
        for process in self._all:
            process.close()


class _Process:
    def __init__(self, configs: Sequence[PreprocessingConfig]) -> None:
        self._configs = configs
        self._memory = _anonymous_file()
        self._grow(_FILE_BYTES)
        told = json.dumps([config.model_dump(mode="json") for config in configs])
        # A session of its own: Ctrl-C is for the parent, whose end ends the process too.
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, json.dumps(sys.path), str(self._memory), told],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(self._memory,),
            env=os.environ | _SETTINGS,
            start_new_session=True,
        )

    def _grow(self, file_bytes: int) -> None:
        size = SharedTask.size_for(self._configs, file_bytes)
        os.ftruncate(self._memory, size)
        self._task = SharedTask(self._memory, self._configs, size)

    def decode(self, files: Sequence[bytes], into: Sequence[np.ndarray]) -> list[Bad]:
        sizes = [len(data) for data in files]
        if SharedTask.size_for(self._configs, sum(sizes)) > self._task.size:
            self._grow(sum(sizes))
        self._task.put(files)
        bad = self._answer([self._task.size, *sizes])
        made = len(files) - len(bad)
        for array, squares in zip(into, self._task.squares, strict=True):
            array[:made] = squares[:made]
        return bad

    def _answer(self, request: list[int]) -> list[Bad]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        answer = b""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        if not answer.endswith(b"\n"):
            code = self._process.wait()
            how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
            raise UserError(f"a process that decodes images {how}", "was memory short? --workers 1 needs least")
        return [(i, kind, text) for i, kind, text in json.loads(answer)]

    def close(self) -> None:
        """End the process; one that hangs is killed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(_END_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        os.close(self._memory)


def _anonymous_file() -> int:
    """The descriptor of a file without a name; it is gone when the last process that has it is, however that ended."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("titokctl-decode")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
