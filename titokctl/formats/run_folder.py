"""A run folder: what one command made, and what made it.

Specification: `<runs>/<kind>/<name>/run.json` is the marker of a run; kinds are "tokenizer", "proxy" (a VQGAN),
"generator" and "samples". It is JSON with format "titokctl/run", format_version 1, kind, name, status ("running",
"stopped", "failed" or "finished"), created and finished (UTC, ISO 8601 with microseconds), settings (the resolved
recipe or settings), inputs (paths and hashes of what the run was made from), product (once finished: a file name in the
folder, or an absolute path when the user chose another place), hashes (of the product) and versions (of packages; and
`commit`, that of titokctl, where it ran from a checkout). Other files of the folder belong to the command: recipe.yaml,
metrics.jsonl, checkpoints/, tensorboard/, pictures. A run counts as a product only when its status is "finished". One
that was killed can't say so: it is recorded as running, and read as stopped, since nobody holds its lock.
"""

import os
import platform
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from titokctl import __version__
from titokctl.errors import UsageError, UserError
from titokctl.formats.atomic import check_version, read_json, write_json
from titokctl.formats.checkout import commit_of
from titokctl.formats.folder_lock import is_held

FORMAT = "titokctl/run"
FORMAT_VERSION = 1
KINDS = ("tokenizer", "proxy", "generator", "samples")
# Everything that a run consists of; a run folder may hold other files, which are never deleted.
RUN_FILES = (
    "run.json",
    "recipe.yaml",
    "metrics.jsonl",
    "weights.safetensors",
    "proxy-codes.npy",
    "report.html",
    "samples-*.png",
    "reconstructions-*.png",
    "checkpoints/step-*",
    "checkpoints/.step-*.tmp-*",
    "tensorboard/events.out.tfevents.*",
    ".*.tmp-*",
)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_MADE_WITH = ("torch", "numpy", "pillow", "h5py", "safetensors", "webdataset")
_FIELDS: dict[str, Any] = {
    "settings": dict,
    "inputs": dict,
    "status": str,
    "created": str,
    "finished": str | None,
    "product": str | None,
    "hashes": dict,
    "versions": dict,
}


@dataclass
class RunFolder:
    """One run on disk. `save` writes run.json atomically; everything else is plain data."""

    path: Path
    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)
    status: str = "running"
    created: str = ""
    finished: str | None = None
    product: str | None = None
    hashes: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.name

    @property
    def is_finished(self) -> bool:
        """True once the product is complete."""
        return self.status == "finished"

    @property
    def product_path(self) -> Path:
        """Where the product lies; only meaningful for a finished run."""
        return self.path / (self.product or "")

    def saved_step(self) -> int | None:
        """The step of the newest checkpoint, whole or not; None where none is saved."""
        found = [path.name.removeprefix("step-") for path in self.path.glob("checkpoints/step-*")]
        return max((int(step) for step in found if step.isdecimal()), default=None)

    def save(self) -> None:
        """Write run.json."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.created = self.created or _now()
        self.versions = self.versions or versions() | _commit()
        record = {"format": FORMAT, "format_version": FORMAT_VERSION, "name": self.name}
        fields = ("kind", "status", "created", "finished", "product", "hashes", "inputs", "settings", "versions")
        write_json(self.path / "run.json", record | {name: getattr(self, name) for name in fields})

    def finish(self, product: str, hashes: dict[str, str]) -> None:
        """Record that `product` (a file name in the folder, or an absolute path) is complete."""
        self.status, self.finished, self.product, self.hashes = "finished", _now(), product, hashes
        self.save()


def check_run_name(name: str | None) -> None:
    """Raise UsageError unless `name`, if given, can name a run: one folder in the runs folder."""
    if name is not None and not _NAME.fullmatch(name):
        raise UsageError(
            f"--name {name!r} is no name of a run: it must have 1 to 100 letters, digits, dots, underscores or dashes, "
            "and must not begin with a dot or a dash",
            "for another folder of runs, use --runs-dir",
        )


def files_of(run: Path) -> list[Path]:
    """Return the files and folders in `run` that a run consists of."""
    return sorted({path for pattern in RUN_FILES for path in run.glob(pattern)})


def check_is_run(folder: Path) -> None:
    """Raise UserError when `folder` is no run, but holds files that a run would overwrite."""
    found = [] if (folder / "run.json").is_file() else [path for path in files_of(folder) if path.name[0] != "."]
    if found:
        raise UserError(
            f"{folder} holds {found[0].relative_to(folder)}, but no run.json, so it is not a run of titokctl",
            "choose another --name, or move the files away",
        )


def runs_root(given: Path | None = None) -> Path:
    """The runs folder: `given`, else TITOKCTL_RUNS, else ./runs."""
    return given or Path(os.environ.get("TITOKCTL_RUNS") or "runs")


def open_run(path: Path) -> RunFolder:
    """Read a run folder. Raises UserError when it is none, from a newer titokctl, or damaged."""
    record = read_json(path / "run.json")
    if not isinstance(record, dict) or record.get("format") != FORMAT or record.get("kind") not in KINDS:
        raise UserError(f"{path / 'run.json'} is not a titokctl run")
    check_version(record.get("format_version", 0), FORMAT_VERSION, path, "run format")
    wrong = [name for name, type_ in _FIELDS.items() if not isinstance(record.get(name), type_)]
    if "hashes" not in wrong and not all(isinstance(value, str) for value in record["hashes"].values()):
        wrong.append("hashes")
    product = record.get("product")
    if isinstance(product, str) and Path(product).name != product and not Path(product).is_absolute():
        wrong.append("product")
    if wrong:
        raise UserError(f"{path / 'run.json'} is damaged: {', '.join(wrong)}")
    run = RunFolder(path=path, kind=record["kind"], **{name: record[name] for name in _FIELDS})
    if run.status == "running" and is_held(path) is False:
        run.status = "stopped"
    return run


def readable_runs(root: Path, kind: str) -> Iterator[RunFolder]:
    """Runs of `kind` in order of their names; folders that can't be read are passed over."""
    for marker in sorted((root / kind).glob("*/run.json")):
        try:
            yield open_run(marker.parent)
        except (UserError, OSError, ValueError, RecursionError):
            continue


def finished_runs(root: Path, kind: str) -> list[RunFolder]:
    """Finished runs of `kind` whose product is there, newest first; folders that can't be read are passed over."""
    runs = [run for run in readable_runs(root, kind) if run.is_finished and _has_product(run)]
    return sorted(runs, key=lambda run: run.finished or "", reverse=True)


def _has_product(run: RunFolder) -> bool:
    try:
        return bool(run.product) and run.product_path.exists()
    except OSError:  # a name that no file system takes
        return False


def newest_run(root: Path, kind: str, fits: Callable[[RunFolder], bool] = lambda run: True) -> RunFolder | None:
    """The newest finished run of `kind` for which `fits`, or None.

    Raises UserError when the two newest were finished at the same moment, so that nothing is taken by chance.
    """
    runs = [run for run in finished_runs(root, kind) if fits(run)]
    if len(runs) > 1 and runs[0].finished == runs[1].finished:
        tied = [str(run.path) for run in runs if run.finished == runs[0].finished]
        raise UserError(f"{len(tied)} {kind} runs fit equally well: {', '.join(tied)}", "name the one you mean")
    return runs[0] if runs else None


def versions() -> dict[str, str]:
    """Versions of everything that may change a number, for the record."""
    found = {"titokctl": __version__, "python": platform.python_version()}
    for package in _MADE_WITH:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _commit() -> dict[str, str]:
    """The commit of this code where it lies in a checkout."""
    found = commit_of(Path(__file__).resolve().parents[2])
    return {"commit": found} if found else {}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
