"""Files to squares in a process of its own; what such a process imports is light, and torch is not among it.

A decoding process is asked on its standard input and answers on its standard output, a line of JSON each. Files and
squares lie in memory that it shares with who started it. It ends when its input does, so also when that one was killed.
"""

import json
import mmap
import sys
from collections.abc import Sequence

import numpy as np

from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.data.images import BadImage, decode_for, square

CHUNK = 16  # files of one task of a worker
_TOGETHER = 16 << 20  # bytes of pixels that are decoded before they are resized: each work finds its own in the caches

Bad = tuple[int, str, str]  # which file, a stable short word for the reason, what was found


def empty_squares(count: int, size: int) -> np.ndarray:
    """(count, S, S, 3) uint8 of any content, in planes as the squares that `decode_files` makes."""
    return np.empty((count, 3, size, size), np.uint8).transpose(0, 2, 3, 1)


def decode_files(
    files: Sequence[bytes], configs: Sequence[PreprocessingConfig], into: Sequence[np.ndarray]
) -> list[Bad]:
    """Squares of the files, for each config in its array of `into`, without gaps for bad files, which are named."""
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
    """The memory of one task: `squares`, an array (CHUNK, S, S, 3) for each config, and behind them the `files`."""

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
        """Bytes that a task with that many bytes of files needs."""
        return CHUNK * 3 * sum(config.size**2 for config in configs) + max(file_bytes, 1)

    def put(self, files: Sequence[bytes]) -> None:
        """Store the files one behind the other."""
        at = self._files_at
        for data in files:
            self._memory[at : at + len(data)] = data
            at += len(data)

    def files(self, sizes: Sequence[int]) -> list[bytes]:
        """What `put` stored."""
        ends = self._files_at + np.cumsum(sizes)
        return [self._memory[end - size : end] for end, size in zip(ends.tolist(), sizes, strict=True)]


def main() -> None:
    """A decoding process; its arguments are the descriptor of the memory, and the configs as JSON."""
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
