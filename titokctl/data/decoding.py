"""Decoding of files to squares, also in a process of its own, which imports little and no torch.

A decoding process gets requests on its standard input and answers on its standard output, each a line of JSON. Files
and squares are in memory that it shares with its parent. It ends when its input ends, so also if the parent is killed.

These are plain Python processes: forking is unsafe in a process with threads or a GPU, and `multiprocessing` would
import the caller's main module again.
"""

import contextlib
import json
import mmap
import os
import queue
import subprocess
import sys
import tempfile
from collections.abc import Sequence

import numpy as np

from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.data.images import BadImage, decode_for, square
from titokctl.errors import UserError

CHUNK = 16  # files per task of a worker
_TOGETHER = 16 << 20  # bytes of pixels that are decoded before they are resized: each step runs from warm caches

Bad = tuple[int, str, str]  # number of the file, a stable word for the fault, the fault in words


def empty_squares(count: int, size: int) -> np.ndarray:
    """Return an uninitialised (count, S, S, 3) uint8 array, in planes like the squares of `decode_files`."""
    return np.empty((count, 3, size, size), np.uint8).transpose(0, 2, 3, 1)


def decode_files(
    files: Sequence[bytes], configs: Sequence[PreprocessingConfig], into: Sequence[np.ndarray]
) -> list[Bad]:
    """Decode files to squares, for each config into its array of `into`, without gaps. Returns the bad files."""
    bad: list[Bad] = []
    waiting: list[np.ndarray] = []
    made = 0
    for i, data in enumerate(files):
        try:
            waiting.append(decode_for(data, configs))
        except BadImage as error:
            bad.append((i, error.kind, error.text))
        if i == len(files) - 1 or sum(pixels.nbytes for pixels in waiting) > _TOGETHER:
            for pixels in waiting:
                for array, config in zip(into, configs, strict=True):
                    array[made] = square(pixels, config)
                made += 1
            waiting.clear()
    return bad


class SharedTask:
    """The shared memory of one task: `squares`, an array (CHUNK, S, S, 3) per config, and behind them the files."""

    def __init__(self, descriptor: int, configs: Sequence[PreprocessingConfig], size: int) -> None:
        self.size = size
        self._memory = mmap.mmap(descriptor, size)
        self.squares: list[np.ndarray] = []
        self._files_at = 0
        for config in configs:
            shape = (CHUNK, 3, config.size, config.size)
            array = np.frombuffer(self._memory, np.uint8, CHUNK * 3 * config.size**2, self._files_at).reshape(shape)
            self.squares.append(array.transpose(0, 2, 3, 1))
            self._files_at += array.size

    @staticmethod
    def size_for(configs: Sequence[PreprocessingConfig], file_bytes: int) -> int:
        """Return the size in bytes of a task with `file_bytes` bytes of files."""
        return CHUNK * 3 * sum(config.size**2 for config in configs) + max(file_bytes, 1)

    def put(self, files: Sequence[bytes]) -> None:
        """Store the files, concatenated."""
        at = self._files_at
        for data in files:
            self._memory[at : at + len(data)] = data
            at += len(data)

    def files(self, sizes: Sequence[int]) -> list[bytes]:
        """Return the files that `put` stored."""
        ends = self._files_at + np.cumsum(sizes)
        return [self._memory[end - size : end] for end, size in zip(ends.tolist(), sizes, strict=True)]


def main() -> None:
    """Run a decoding process. Its arguments are the descriptor of the shared memory and the configs as JSON."""
    descriptor = int(sys.argv[-2])
    configs = [PreprocessingConfig(**values) for values in json.loads(sys.argv[-1])]
    task: SharedTask | None = None
    try:
        for line in sys.stdin:
            size, *sizes = json.loads(line)
            if task is None or task.size != size:
                task = SharedTask(descriptor, configs, size)
            print(json.dumps(decode_files(task.files(sizes), configs, task.squares)), flush=True)
    except (BrokenPipeError, KeyboardInterrupt):
        pass
    except (UserError, MemoryError):  # no memory: the parent says so when this process ends
        sys.exit(1)


_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from titokctl.data.decoding import main; main()"
_FILE_BYTES = 4 << 20  # of a task; grows if needed
# One thread each. Memory is kept from image to image, since new memory costs as much as the resize.
_SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(128 << 20),
}
_END_WITHIN_S = 5.0


class DecodeProcesses:
    """As many decoding processes as threads call `decode` at once; each starts when first needed.

    Args:
        configs: the preprocessing of each square of a file.
    """

    def __init__(self, configs: Sequence[PreprocessingConfig]) -> None:
        self._configs = list(configs)
        self._idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        self._all: list[_Process] = []

    def decode(self, files: Sequence[bytes], into: Sequence[np.ndarray]) -> list[Bad]:
        """Decode at most CHUNK files in one of the processes, as `decode_files` does.

        Raises UserError when the process dies.
        """
        try:
            process = self._idle.get_nowait()
        except queue.Empty:
            process = _started(self._configs)
            self._all.append(process)
        bad = process.decode(files, into)
        self._idle.put(process)
        return bad

    def decode_each(self, files: Sequence[bytes], into: Sequence[np.ndarray]) -> list[Bad]:
        """Decode files as `decode` does, one at a time. A file that kills its process is one of the bad ones."""
        bad: list[Bad] = []
        for i, data in enumerate(files):
            made = i - len(bad)
            try:
                bad += [(i, kind, text) for _, kind, text in self.decode([data], [one[made:] for one in into])]
            except UserError as error:
                bad.append((i, "deadly", error.message))
        return bad

    @property
    def ids(self) -> list[int]:
        """Process ids of the processes that were started."""
        return [process.id for process in self._all]

    def close(self) -> None:
        """End all processes."""
        for process in self._all:
            process.close()


class _Process:
    def __init__(self, configs: Sequence[PreprocessingConfig]) -> None:
        self._configs = configs
        self._memory = _anonymous_file()
        self._grow(_FILE_BYTES)
        arguments = json.dumps([config.model_dump(mode="json") for config in configs])
        # In a session of its own: Ctrl-C reaches only the parent, and this process ends with it.
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, json.dumps(sys.path), str(self._memory), arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(self._memory,),
            env=os.environ | _SETTINGS,
            start_new_session=True,
        )

    @property
    def id(self) -> int:
        """Its process id."""
        return self._process.pid

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
            raise UserError(
                f"a process that decodes images {how}", "it may have run out of memory; --workers 1 needs the least"
            )
        return [(i, kind, text) for i, kind, text in json.loads(answer)]

    def close(self) -> None:
        """End the process; kill it if it hangs."""
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


def _started(configs: Sequence[PreprocessingConfig]) -> _Process:
    try:
        return _Process(configs)
    except OSError as error:
        raise UserError(
            f"no process that decodes images can be started: {error.strerror}",
            "use fewer with --workers 1, or raise the limits (ulimit -n, ulimit -u)",
        ) from error


def _anonymous_file() -> int:
    """Return the descriptor of an unnamed file, which the kernel removes with the last process that has it open."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("titokctl-decode")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
