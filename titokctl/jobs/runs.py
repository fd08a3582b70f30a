"""`titokctl runs`: what lies in the runs folder, and what one run is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from titokctl.errors import UserError
from titokctl.formats.metrics_log import MetricsLog
from titokctl.formats.run_folder import KINDS, RunFolder, open_run, readable_runs
from titokctl.jobs.lineage import Link, lineage_of

METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class ListedRun:
    """A line of `runs ls`. `step` is the newest one logged, None for runs without steps."""

    kind: str
    name: str
    status: str
    created: str
    step: int | None
    product: str | None


@dataclass(frozen=True)
class ShownRun:
    """Everything `runs show` says: the record of the run, its newest numbers, and where it came from."""

    path: str
    kind: str
    record: dict[str, Any]
    metrics: dict[str, Any]
    lineage: list[Link]


def list_runs(root: Path) -> list[ListedRun]:
    """All runs that can be read, kind by kind, the newest first."""
    found = [_listed(run) for kind in KINDS for run in readable_runs(root, kind)]
    return sorted(found, key=lambda run: (-KINDS.index(run.kind), run.created), reverse=True)


def find_run(given: str, root: Path) -> RunFolder:
    """A run by its folder, by kind/name, or by a name that only one run has.

    Raises:
        UserError: no run or several are meant; the hint names them.
    """
    if (Path(given) / "run.json").is_file():
        return open_run(Path(given))
    fitting = [root / run.kind / run.name for run in list_runs(root) if given in (run.name, f"{run.kind}/{run.name}")]
    if len(fitting) == 1:
        return open_run(fitting[0])
    if fitting:
        raise UserError(
            f"{len(fitting)} runs are called {given}", f"name one of: {', '.join(str(path) for path in fitting)}"
        )
    raise UserError(f"no run {given} in {root}", f"`titokctl runs ls` lists what is in {root}")


def show_run(given: str, root: Path) -> ShownRun:
    """The run that `find_run` finds, with its newest numbers and its lineage."""
    run = find_run(given, root)
    names = ("status", "created", "finished", "product", "hashes", "settings", "versions")
    metrics = MetricsLog(run.path / METRICS).newest_values()
    return ShownRun(
        str(run.path), run.kind, {name: getattr(run, name) for name in names}, metrics, lineage_of(run, root)
    )


def _listed(run: RunFolder) -> ListedRun:
    step = MetricsLog(run.path / METRICS).newest_values().get("step")
    return ListedRun(run.kind, run.name, run.status, run.created, step, run.product)
