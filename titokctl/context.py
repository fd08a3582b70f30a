"""What every job works with, as one argument."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from titokctl.distributed.group import Group, single_group
from titokctl.distributed.stop import StopRequest
from titokctl.progress import Progress, SilentProgress


@dataclass(frozen=True)
class Context:
    """Where a job runs, and whom it reports to.

    `Context()` is what a Python program usually wants: this process alone, on the CPU, silent, with the runs folder
    `runs/`. The command line makes one from the options that all commands share.

    Args:
        runs: the runs folder, in which products are found and put.
        device: "cpu", "cuda" or "cuda:<n>".
        progress: told of phases, finished units and remarks.
        stop: asked between units of work; a job then saves and raises Stopped.
        group: the processes that work together. A job runs in each of them with the same request.
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
