"""`titokctl runs`: the runs in the runs folder, the details of one, and its lineage back to the images."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from titokctl.config.differences import flatten
from titokctl.context import Context
from titokctl.errors import UsageError, UserError
from titokctl.formats.metrics_log import MetricsLog
from titokctl.formats.run_folder import KINDS, RunFolder, finished_runs, open_run, readable_runs
from titokctl.jobs.machine.run_table import METRICS, differing_settings, scores_of, size_of, unreadable_runs
from titokctl.readable import counted, first_few


@dataclass(frozen=True)
class ListedRun:
    """A line of `runs ls`; `finished` is None for an unfinished run, `step` for a run without steps.

    The status is that of the run, or "earlier" for a product that a longer or newer training left, named RUN@HASH, or
    what is wrong with a folder that can't be read as a run.

    Args:
        created, finished: UTC, ISO 8601; `created` is "" for a folder that can't be read.
        settings: those that differ between the runs of its kind, by field name.
        scores: kept results of its images, or its newest held-out numbers.
        num_bytes: of all files in the run's folder; None for an earlier product, which is in the folder of its run.
    """

    kind: str
    name: str
    status: str
    created: str
    finished: str | None
    step: int | None
    product: str | None
    settings: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    num_bytes: int | None = None


@dataclass(frozen=True)
class Difference:
    """A field of run.json that differs between two runs; None where a run lacks it."""

    field: str
    first: Any
    second: Any


@dataclass(frozen=True)
class Link:
    """One product of a lineage: its kind, its path or "not in this runs folder", and its hash."""

    what: str
    where: str
    sha256: str


@dataclass(frozen=True)
class ShownRun:
    """The details of a run: its record, newest metrics, and lineage."""

    path: str
    kind: str
    record: dict[str, Any]
    metrics: dict[str, Any]
    lineage: list[Link]


@dataclass(frozen=True)
class ListRuns:
    """List all runs by kind: finished runs first, newest on top, which is the order of automatic choice.

    Args:
        sort: order by this field of a run, else by this score or setting; from large to small with a "-" before it.
    """

    sort: str | None = None

    def run(self, context: Context) -> list[ListedRun]:
        """Return the list, folders that can't be read last. Raises UsageError when no run has the field `sort`."""
        found = _listed(context.runs)
        return found if self.sort is None else _sorted(found, self.sort)


@dataclass(frozen=True)
class DiffRuns:
    """Compare what two runs record: settings, inputs, versions, latest launch and scores.

    Args:
        first, second: as `find_run` takes them.
    """

    first: str
    second: str

    def run(self, context: Context) -> list[Difference]:
        """Return the fields that differ. Raises UserError when no run, or more than one, has a name."""
        a, b = (_compared(find_run(name, context.runs)) for name in (self.first, self.second))
        names = [name for name in dict.fromkeys([*a, *b]) if a.get(name) != b.get(name)]
        return [Difference(name, a.get(name), b.get(name)) for name in names]


@dataclass(frozen=True)
class ShowRun:
    """Show the details of the run `name`, which is what `find_run` takes."""

    name: str

    def run(self, context: Context) -> ShownRun:
        """Return the details. Raises UserError when no run, or more than one, has this name."""
        run = find_run(self.name, context.runs)
        names = ("status", "created", "finished", "product", "hashes", "settings", "versions", "launches")
        record = {"step": _step(run)} | {name: getattr(run, name) for name in names}
        return ShownRun(str(run.path), run.kind, record, _metrics(run), lineage_of(run, context.runs))


def _listed(root: Path) -> list[ListedRun]:
    runs = [run for kind in KINDS for run in readable_runs(root, kind)]
    found = [
        ListedRun(
            r.kind, r.name, r.status, r.created, _ended(r), _step(r), r.product, own, scores_of(r), size_of(r.path)
        )
        for r, own in zip(runs, differing_settings(runs), strict=True)
    ]
    for product in (p for run in runs for p in run.products if p.is_earlier):
        name = Path(product.reference).name
        found.append(
            ListedRun(product.kind, name, "earlier", product.created, product.finished, product.step, product.product)
        )
    found.sort(key=lambda run: (-KINDS.index(run.kind), run.finished or "", run.created), reverse=True)
    broken = [
        ListedRun(kind, path.name, problem, "", None, None, None, num_bytes=size_of(path))
        for kind, path, problem in unreadable_runs(root)
    ]
    return found + broken


def _sorted(runs: list[ListedRun], by: str) -> list[ListedRun]:
    """Return the runs in the order of a field, score or setting; those without it come last."""
    name = by.removeprefix("-")
    name = {"size": "num_bytes"}.get(name, name)
    values = [getattr(run, name, (run.scores | run.settings).get(name)) for run in runs]
    if all(value is None for value in values):
        known = sorted({field for run in runs for field in (*run.scores, *run.settings)})
        raise UsageError(
            f"no run has {name}", f"sort by name, status, step, created, finished, size, {', '.join(known)}"
        )
    have = [(value, run) for value, run in zip(values, runs, strict=True) if value is not None]
    is_number = all(isinstance(value, int | float) for value, _ in have)
    have.sort(key=lambda pair: pair[0] if is_number else str(pair[0]), reverse=by.startswith("-"))
    return [run for _, run in have] + [run for value, run in zip(values, runs, strict=True) if value is None]


def _compared(run: RunFolder) -> dict[str, Any]:
    record = {"kind": run.kind, "settings": run.settings, "inputs": run.inputs, "versions": run.versions}
    for launch in run.launches[-1:]:
        record["launch"] = {name: value for name, value in launch.items() if name != "started"}
    return flatten(record | {"scores": scores_of(run)})


def find_run(given: str, root: Path) -> RunFolder:
    """Return a run by its folder, by kind/name, or by a name that only one run has.

    Raises UserError when no run, or more than one, has this name.
    """
    if (Path(given) / "run.json").is_file():
        return open_run(Path(given))
    runs = [run for kind in KINDS for run in readable_runs(root, kind)]
    fitting = [root / run.kind / run.name for run in runs if given in (run.name, f"{run.kind}/{run.name}")]
    if len(fitting) == 1:
        return open_run(fitting[0])
    if fitting:
        raise UserError(
            f"{len(fitting)} runs are named {given}", f"name one of: {', '.join(str(path) for path in fitting)}"
        )
    for kind, folder, problem in unreadable_runs(root):
        if given in (folder.name, f"{kind}/{folder.name}"):
            raise UserError(f"{folder} can't be read as a run: {problem}", f"`titokctl runs` lists what is in {root}")
    raise UserError(f"no run named {given} in {root}", f"`titokctl runs` lists what is in {root}")


def _ended(run: RunFolder) -> str | None:
    return run.finished if run.is_finished else None


def _step(run: RunFolder) -> int | None:
    """Return the step of the product; without one the last saved step, or a running run's last logged one."""
    if run.is_finished and run.step is not None:
        return run.step
    saved = run.saved_step()
    logged = _metrics(run).get("step") if run.status in ("finished", "running") else None
    return max((step for step in (saved, logged) if step is not None), default=None)


def _metrics(run: RunFolder) -> dict[str, Any]:
    return MetricsLog(run.path / METRICS).newest_values()


def lineage_of(run: RunFolder, root: Path) -> list[Link]:
    """Return the products from `run` back to its images, the run itself first; the others are found in `root`."""
    own = run.hashes.get("ids_sha256") or run.hashes.get("weights_sha256", "")
    return [Link(run.kind, str(run.path), own), *_before(run.inputs, root)]


def _before(inputs: dict[str, Any], root: Path) -> Iterator[Link]:
    if "generator_sha256" in inputs:
        yield _run_with("weights_sha256", inputs["generator_sha256"], "generator", "generator", root)
    if "cache" in inputs:
        there = "" if Path(inputs["cache"]).exists() else " (moved or deleted)"
        yield Link("token cache", inputs["cache"] + there, inputs.get("identity", "").split("/")[0])
    if "encoder_sha256" in inputs:
        yield _run_with("encoder_sha256", inputs["encoder_sha256"], "tokenizer", "tokenizer (encoder)", root)
    for name, what in (("source", "images"), ("data", "images"), ("validation", "held-out images")):
        if isinstance(inputs.get(name), dict):
            yield _images(what, inputs[name])


def _run_with(name: str, sha256: str, kind: str, what: str, root: Path) -> Link:
    """Find the newest run whose hash `name` is `sha256`."""
    found = (run.reference for run in finished_runs(root, kind) if run.hashes.get(name) == sha256)
    return Link(what, next(found, "not in this runs folder"), sha256)


def _images(what: str, source: dict[str, Any]) -> Link:
    paths = source.get("paths") or [source.get("path", "unknown")]
    count = f", {counted(source['num_samples'], 'images')}" if isinstance(source.get("num_samples"), int) else ""
    return Link(what, f"{first_few(paths, 1)}{count}", source.get("fingerprint", ""))
