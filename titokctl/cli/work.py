"""The context that a command gives to its job, and dry runs."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import typer

from titokctl.cli import console
from titokctl.errors import UsageError, UserError
from titokctl.progress import Progress
from titokctl.readable import counted, duration, readable, size

if TYPE_CHECKING:
    from titokctl.context import Context
    from titokctl.distributed.ray_cluster import RayCluster
    from titokctl.distributed.stop import StopRequest
    from titokctl.jobs.plan import Job, ReadingJob, WritePlan


ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Machine:
    """The options that name a device, and the processes that share the work."""

    device: str | None
    gpus: str | None
    procs: int | None
    nodes: int = 1
    node_rank: int | None = None
    endpoint: str | None = None


@dataclass(frozen=True)
class Engine:
    """The options that name the engine of a command, and of Ray how many workers it may have.

    Raises UsageError for options that exclude each other.
    """

    name: str | None
    address: str | None
    min_workers: int | None
    max_workers: int | None

    def cluster(self, machine: Machine) -> "RayCluster | None":
        """Return the Ray cluster to use; None if torchrun is the engine."""
        from titokctl.distributed.ray_cluster import RayCluster

        given = {"--address": self.address, "--min-workers": self.min_workers, "--max-workers": self.max_workers}
        if self.name != "ray":
            if wrong := [name for name, value in given.items() if value is not None]:
                raise UsageError(f"{wrong[0]} is for --engine ray", "add --engine ray")
            return None
        others = {"--gpus": machine.gpus, "--procs": machine.procs, "--nodes": None if machine.nodes == 1 else 2}
        if wrong := [name for name, value in others.items() if value is not None]:
            raise UsageError(
                f"{wrong[0]} and --engine ray are mutually exclusive", "say how many workers with --max-workers"
            )
        return RayCluster(
            self.address, 1 if self.min_workers is None else self.min_workers, self.max_workers, machine.device
        )


@dataclass(frozen=True)
class Surroundings:
    """The options that decide how a command runs and reports, but not what it makes.

    Args:
        device: of a command that runs in this process alone; None for the best there is.
        machine: of a command that several processes can share; it names the device, too.
        takes_all_gpus: run one process per GPU unless the options say otherwise.
    """

    quiet: bool = False
    as_json: bool = False
    dry_run: bool = False
    runs_dir: Path | None = None
    device: str | None = "cpu"
    machine: Machine | None = None
    takes_all_gpus: bool = False


def perform(job: "Job[Any, ResultT] | ReadingJob[ResultT]", around: Surroundings) -> "ResultT":
    """Run a job, in as many processes as the options ask for, and return its result.

    If the job has a method `check(device)`, it is called before any process is started. Raises `typer.Exit` in the
    process that started others, and after a dry run, whose plan is shown.
    """
    with context(around, getattr(job, "check", None)) as found:
        if around.dry_run:
            plan = cast("Job[Any, ResultT]", job).plan(found)
            found.progress.close()
            show_plan(plan, around.as_json)
            raise typer.Exit
        return job.run(found)


@contextmanager
def context(around: Surroundings, check: Callable[[str], None] | None = None) -> "Iterator[Context]":
    """Make the context of a job: progress on stderr, stop on signals, runs folder, device and group.

    Raises `typer.Exit` in a process that started others, when they have finished. A dry run needs one process only.

    Args:
        check: called with the device before any process is started.
    """
    from titokctl.context import Context
    from titokctl.distributed.group import process_group
    from titokctl.distributed.place import place
    from titokctl.formats.run_folder import runs_root

    runs = runs_root(around.runs_dir)
    if around.machine is None:
        device = _chosen(_device(around.device))
        with _reporting(around.quiet) as (progress, stop):
            yield Context(runs, device, progress, stop)
        return
    device = _chosen(_start_processes(around, around.machine, check))
    with _reporting(around.quiet, place().is_main) as (progress, stop):
        if around.dry_run:
            yield Context(runs, device, progress, stop)
            return
        with process_group(device) as group:
            yield Context(runs, device, progress, stop, group)


@contextmanager
def _reporting(quiet: bool, is_main: bool = True) -> "Iterator[tuple[Progress, StopRequest]]":
    """Show progress and handle signals; the progress is closed at the end, so that errors are shown below it."""
    from titokctl.distributed.stop import StopRequest

    progress = console.progress(quiet, is_main)
    with StopRequest() as stop:
        try:
            yield progress, stop
        finally:
            progress.close()


def _start_processes(around: Surroundings, machine: Machine, check: Callable[[str], None] | None) -> str:
    """Start the processes that the options ask for, and return the device of this one.

    Raises `typer.Exit` in the process that started others, and in all but the first process of a dry run.
    """
    from titokctl.distributed import launch
    from titokctl.distributed.place import adopt_slurm, place
    from titokctl.models.device import device_named, gpus_to_use

    if machine.gpus is None and machine.procs is None and machine.nodes == 1:
        adopt_slurm(os.environ)
    device = device_named(machine.device, "cpu" if machine.procs is not None else None)
    if device == "mps" and (machine.procs or 1) > 1:
        raise UsageError("several processes can't share an Apple GPU", "leave out --procs, or take --device cpu")
    if place().is_main and check is not None:
        check(device)
    if around.dry_run and not place().is_main:
        raise typer.Exit
    if around.dry_run:
        launch.processes_here(machine.gpus, machine.procs, dry=True)
        return device
    nodes = launch.Nodes(machine.nodes, machine.node_rank, machine.endpoint)
    default = gpus_to_use(device) if around.takes_all_gpus else None
    if launch.relaunch(machine.gpus, machine.procs, nodes, default):
        raise typer.Exit
    return device


def _device(wanted: str | None) -> str:
    """Return the device that `wanted` names; torch is imported only if it must be asked."""
    if wanted == "cpu":
        return wanted
    from titokctl.models.device import device_named

    return device_named(wanted)


def _chosen(device: str) -> str:
    """Make a GPU that was named by its number the current one, and return its name."""
    if ":" in device:
        import torch

        torch.cuda.set_device(device)
    return device


def measured_in_words(images_per_s: float, seconds: float) -> str:
    """Return the line of a plan about a measured speed, and the time of the whole run."""
    return f"{images_per_s:,.1f} images/s measured: {duration(seconds)} for the whole run"


def show_plan(plan: "WritePlan", as_json: bool) -> None:
    """Print a plan on stdout. Raises UserError when its output can't be written."""
    free = _free_bytes(plan)
    if as_json:
        console.emit_json(asdict(plan) | {"replaces": plan.replaces, "free_bytes": free})
        return
    needed = "" if plan.num_bytes is None else f", about {size(plan.num_bytes)}"
    lines: dict[str, Any] = {**plan.reads, "output": f"{plan.output}: {counted(plan.count, plan.unit)}{needed}"}
    if plan.replaces:
        lines["replaces"] = f"the existing {plan.output}"
        if list(plan.removes) != [str(plan.output)]:
            lines["deletes"] = readable(list(plan.removes), shown=5)
    if plan.done:
        lines["done before"] = f"{plan.done:,} of {counted(plan.count, plan.unit)}"
    lines |= plan.settings
    console.pairs("dry run: nothing was written", {n.replace("_", " "): readable(v) for n, v in lines.items()})
    if plan.num_bytes is not None and free is not None and plan.num_bytes > free:
        console.warn(f"the disk of {plan.output} has only {size(free)} free")


def _free_bytes(plan: "WritePlan") -> int | None:
    """Return the bytes free on the disk of the output; None for an object store.

    Raises UserError when the output can't be written.
    """
    from titokctl.formats.object_store import is_store

    if is_store(plan.output):
        return None
    parent = plan.output.absolute().parent
    existing = next(folder for folder in (parent, *parent.parents) if folder.exists())
    if not existing.is_dir():
        raise UserError(f"{existing} is a file, so {plan.output} can't be written", "choose another -o")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"no permission to write {plan.output}", "choose another output with -o")
    return shutil.disk_usage(existing).free
