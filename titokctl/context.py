"""The context of a job: its device, processes, progress and runs folder, as one argument."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from titokctl.distributed.group import Group, single_group
from titokctl.distributed.stop import StopRequest
from titokctl.progress import Progress, SilentProgress


@dataclass(frozen=True)
class Context:
    """The device and processes that a job runs on, and the progress that it reports to.

    `Context()` suits most Python programs: this process alone, on the CPU, silent, with the runs folder `runs/`. The
    command line makes one from the options that all commands share.

    Args:
        runs: the runs folder, which jobs search for products and write to.
        device: "cpu", "cuda" or "cuda:<n>".
        progress: shows phases, finished units and remarks.
        stop: checked between units of work; after a signal, a job saves and raises Stopped.
        group: the processes that share the work. Each of them runs the job with the same request.
    """

    runs: Path = Path("runs")
    device: str = "cpu"
    progress: Progress = field(default_factory=SilentProgress)
    stop: StopRequest = field(default_factory=StopRequest)
    group: Group = field(default_factory=single_group)

    @property
    def say(self) -> Callable[[str], None]:
        """Report a remark to the user."""
        return self.progress.say
