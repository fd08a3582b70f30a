"""Decoding of files to squares, also in a process of its own, which imports little and no torch.

A decoding process gets requests on its standard input and answers on its standard output, each a line of JSON. Files
and squares are in memory that it shares with its parent. It ends when its input ends, so also if the parent is killed.
"""

import json
import mmap
import sys
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
