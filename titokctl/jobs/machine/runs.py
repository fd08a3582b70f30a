"""`titokctl runs`: what lies in the runs folder, what one run is, and by which products it came from its images."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from titokctl.errors import UserError
from titokctl.formats.metrics_log import MetricsLog
from titokctl.formats.run_folder import KINDS, RunFolder, finished_runs, open_run, readable_runs

METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class ListedRun:
    """A line of `runs ls`. `finished` is None for a run that isn't, `step` for one without steps."""

    kind: str
    name: str
    status: str
    created: str
    finished: str | None
    step: int | None
    product: str | None


@dataclass(frozen=True)
class Link:
    """One product on the way: what it is, where it was found (or that it was not), and the hash that names it."""

    what: str
    where: str
    sha256: str


@dataclass(frozen=True)
class ShownRun:
    """Everything `runs show` says: the record of the run, its newest numbers, and where it came from."""

    path: str
    kind: str
    record: dict[str, Any]
    metrics: dict[str, Any]
    lineage: list[Link]


def list_runs(root: Path) -> list[ListedRun]:
    """All runs that can be read, kind by kind: finished ones first, the last on top, as other commands take them."""
    runs = [run for kind in KINDS for run in readable_runs(root, kind)]
    found = [ListedRun(r.kind, r.name, r.status, r.created, _ended(r), _step(r), r.product) for r in runs]
    return sorted(found, key=lambda run: (-KINDS.index(run.kind), run.finished or "", run.created), reverse=True)


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
    record = {"step": _step(run)} | {name: getattr(run, name) for name in names}
    return ShownRun(str(run.path), run.kind, record, _metrics(run), lineage_of(run, root))


def _ended(run: RunFolder) -> str | None:
    return run.finished if run.is_finished else None


def _step(run: RunFolder) -> int | None:
    """The last one that is saved; of a run that is finished or at work the last one logged, where that is newer."""
    saved = run.saved_step()
    logged = _metrics(run).get("step") if run.status in ("finished", "running") else None
    return max((step for step in (saved, logged) if step is not None), default=None)


def _metrics(run: RunFolder) -> dict[str, Any]:
    return MetricsLog(run.path / METRICS).newest_values()


def lineage_of(run: RunFolder, root: Path) -> list[Link]:
    """The products between `run` and its images, the run itself first.

    Args:
        run: any run.
        root: the runs folder in which the others are looked for.
    """
    own = run.hashes.get("ids_sha256") or run.hashes.get("weights_sha256", "")
    return [Link(run.kind, str(run.path), own), *_before(run.inputs, root)]


def _before(inputs: dict[str, Any], root: Path) -> Iterator[Link]:
    if "generator_sha256" in inputs:
        yield _run_with("weights_sha256", inputs["generator_sha256"], "generator", "generator", root)
    if "cache" in inputs:
        there = "" if Path(inputs["cache"]).exists() else " (no longer there)"
        yield Link("token cache", inputs["cache"] + there, inputs.get("identity", "").split("/")[0])
    if "encoder_sha256" in inputs:
        yield _run_with("encoder_sha256", inputs["encoder_sha256"], "tokenizer", "tokenizer (encoder)", root)
    for name, what in (("source", "images"), ("data", "images"), ("validation", "held-out images")):
        if isinstance(inputs.get(name), dict):
            yield _images(what, inputs[name])


def _run_with(name: str, sha256: str, kind: str, what: str, root: Path) -> Link:
    """The newest run whose hash of that name is `sha256`."""
    found = (str(run.path) for run in finished_runs(root, kind) if run.hashes.get(name) == sha256)
    return Link(what, next(found, "not in this runs folder"), sha256)


def _images(what: str, source: dict[str, Any]) -> Link:
    paths = source.get("paths") or [source.get("path", "unknown")]
    more = f" and {len(paths) - 1:,} more" if len(paths) > 1 else ""
    count = f", {source['num_samples']:,} images" if isinstance(source.get("num_samples"), int) else ""
    return Link(what, f"{paths[0]}{more}{count}", source.get("fingerprint", ""))
