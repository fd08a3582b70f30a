"""A profile of a few training steps: trace.json in the run folder, which Perfetto and chrome://tracing show."""

from pathlib import Path
from types import TracebackType

import torch
from torch.profiler import ProfilerActivity, profile

from titokctl.formats.atomic import atomic_path
from titokctl.progress import Progress

NAME = "trace.json"
_BEFORE, _STEPS = 5, 3  # steps without the profiler, and recorded ones


class StepTrace:
    """A context manager that profiles steps 6 to 8 of the training in it with torch.profiler, and writes the trace.

    Recorded are the operations of the CPU and, on a GPU, its kernels, with their times. The profiled steps take longer;
    what they compute is the same.

    Args:
        folder: the run folder; an older trace in it is replaced.
        progress: shows the path of the trace, or that the run was too short for one.
    """

    def __init__(self, folder: Path, progress: Progress) -> None:
        self.path, self._progress = folder / NAME, progress
        self._done = 0
        kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
        # Without a schedule of torch's: a run that ends in the steps before recording would crash torch 2.11.
        self._profiler = profile(activities=kinds, acc_events=True)  # there is one cycle; torch 2.11 warns without it

    def __enter__(self) -> "StepTrace":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._done < _BEFORE + _STEPS:
            if self._done >= _BEFORE:
                self._profiler.stop()
            self._progress.say(f"no {NAME}: a profile needs {_BEFORE + _STEPS} steps")

    def step(self) -> None:
        """Count one training step; the profiler records those after the first five, and ends after the last of them."""
        self._done += 1
        if self._done == _BEFORE:
            self._profiler.start()
        elif self._done == _BEFORE + _STEPS:
            self._profiler.stop()
            self._write()

    def _write(self) -> None:
        with atomic_path(self.path) as temporary:
            self._profiler.export_chrome_trace(str(temporary))
        self._progress.say(f"profile of {_STEPS} steps: {self.path}; open it at https://ui.perfetto.dev")
