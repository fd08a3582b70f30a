"""A profile of a few training steps: trace.json in the run folder, which Perfetto and chrome://tracing show."""

from pathlib import Path
from types import TracebackType

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from titokctl.formats.atomic import atomic_path
from titokctl.progress import Progress

NAME = "trace.json"
_BEFORE, _WARM, _STEPS = 3, 2, 3  # steps without the profiler, steps that it needs to warm up, and recorded steps


class StepTrace:
    """A context manager that profiles steps 6 to 8 of the training in it with torch.profiler, and writes the trace.

    Recorded are the operations of the CPU and, on a GPU, its kernels, with their times. The profiled steps take longer;
    what they compute is the same.

    Args:
        folder: the run folder; an older trace in it is replaced.
        progress: hears where the trace is, or that the run was too short for one.
    """

    def __init__(self, folder: Path, progress: Progress) -> None:
        self.path, self._progress = folder / NAME, progress
        self._left = _BEFORE + _WARM + _STEPS
        kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
        plan = schedule(wait=_BEFORE, warmup=_WARM, active=_STEPS, repeat=1)
        self._profiler = profile(activities=kinds, schedule=plan, on_trace_ready=self._write)

    def __enter__(self) -> "StepTrace":
        self._profiler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._left > 0:
            self._profiler.on_trace_ready = None
            self._profiler.stop()
            self._progress.say(f"no {NAME}: it takes {_BEFORE + _WARM + _STEPS} steps")

    def step(self) -> None:
        """Count one training step; after the last recorded one the profiler ends."""
        if self._left <= 0:
            return
        self._left -= 1
        self._profiler.step()
        if self._left == 0:
            self._profiler.stop()

    def _write(self, profiler: "profile") -> None:
        with atomic_path(self.path) as temporary:
            profiler.export_chrome_trace(str(temporary))
        self._progress.say(f"profile of {_STEPS} steps: {self.path}; open it at https://ui.perfetto.dev")
