"""A run folder: what one command made, and what made it.

Specification: `<runs>/<kind>/<name>/run.json` is the marker of a run; kinds are "tokenizer", "proxy" (a VQGAN),
"generator" and "samples". It is JSON with format "titokctl/run", format_version 1, kind, name, status ("running",
"stopped", "failed" or "finished"), created and finished (UTC, ISO 8601 with microseconds), settings (the resolved
recipe or settings), inputs (paths and hashes of what the run was made from), product (once finished: a file name in the
folder, or an absolute path when the user chose another place), hashes (of the product) and versions (of packages; and
`commit`, that of titokctl, where it ran from a checkout). `launches` lists the latest 20 starts of the command, the
newest last: started (UTC), command (a list of words, URLs without secrets), processes (their number), hosts, devices
(names, each once), driver (of NVIDIA GPUs), commit, and changed (true if tracked files differed from the commit); what
is unknown is missing. Other files of the folder belong to the command: recipe.yaml, metrics.jsonl, checkpoints/,
tensorboard/, wandb/, pictures. Only a finished run has a product. One that was killed can't say so: it is recorded as
running, and read as stopped, since nobody holds its lock.

A run that is made longer or started over keeps its product: the file stays under its name, and its entry in `earlier`,
a list with the newest first, has product, hashes, finished, step and settings as they were. `step` is the number of
steps after which the product was made, where a run has steps. Both fields may be missing. The first product of a
training run is weights.safetensors, a later one weights-<first 12 digits of its weights_sha256>.safetensors.
"""

import contextlib
import os
import platform
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from titokctl import __version__
from titokctl.errors import Stopped, UsageError, UserError
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
    "weights-*.safetensors",
    "proxy-codes.npy",
    "rejected.jsonl",
    "report.html",
    "trace.json",
    "samples-*.png",
    "reconstructions-*.png",
    "checkpoints/step-*",
    "checkpoints/.step-*.tmp-*",
    "tensorboard/events.out.tfevents.*",
    ".*.tmp-*",
)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
LOCATION, REJECTED = "location.json", "rejected.jsonl"
WEIGHTS = "weights.safetensors"
HASH_DIGITS = 12
_LAUNCHES_KEPT = 20
_OF_A_PRODUCT = ("product", "hashes", "finished", "step", "settings")
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
    step: int | None = None
    earlier: list[dict[str, Any]] = field(default_factory=list)
    launches: list[dict[str, Any]] = field(default_factory=list)
    is_earlier: bool = False

    @property
    def reference(self) -> str:
        """The argument that names this product: the folder, for an earlier product with the start of its hash."""
        return (
            f"{self.path}@{self.hashes.get('weights_sha256', '')[:HASH_DIGITS]}" if self.is_earlier else str(self.path)
        )

    @property
    def products(self) -> "list[RunFolder]":
        """The run once for each of its products that are there, the newest first."""
        earlier = [replace(self, **entry, status="finished", earlier=[], is_earlier=True) for entry in self.earlier]
        own = [replace(self, earlier=[])] if self.is_finished else []
        return [run for run in own + earlier if _has_product(run)]

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
        record |= {name: getattr(self, name) for name in fields}
        optional = {"step": self.step, "earlier": self.earlier, "launches": self.launches[-_LAUNCHES_KEPT:]}
        write_json(self.path / "run.json", record | {name: value for name, value in optional.items() if value})

    def finish(self, product: str, hashes: dict[str, str], step: int | None = None) -> None:
        """Record that `product` (a file name in the folder, or an absolute path) is complete, after `step` steps."""
        self.status, self.finished, self.product, self.hashes = "finished", _now(), product, hashes
        self.step, self.earlier = step, [entry for entry in self.earlier if entry["product"] != product]
        self.save()

    def begin_again(self, settings: dict[str, Any]) -> None:
        """Make a finished run an unfinished one with other settings; its product becomes an earlier one.

        Nothing is written before `save`.
        """
        if self.product:
            self.earlier.insert(0, {name: getattr(self, name) for name in _OF_A_PRODUCT})
        self.status, self.settings = "running", settings
        self.product, self.hashes, self.finished, self.step = None, {}, None, None

    def product_name(self, weights_sha256: str) -> str:
        """Return the name for a product of training with this hash, never that of another product."""
        taken = {entry["product"]: entry["hashes"].get("weights_sha256") for entry in self.earlier}
        same = [name for name, sha256 in taken.items() if sha256 == weights_sha256]
        if same:
            return str(same[0])
        return f"weights-{weights_sha256[:HASH_DIGITS]}.safetensors" if WEIGHTS in taken else WEIGHTS


def check_run_name(name: str | None) -> None:
    """Raise UsageError unless `name`, if given, can name a run: one folder in the runs folder."""
    if name is not None and not _NAME.fullmatch(name):
        raise UsageError(
            f"--name {name!r} is not a valid run name: it must have 1 to 100 letters, digits, dots, underscores or "
            "dashes, and must not begin with a dot or a dash",
            "for another folder of runs, use --runs-dir",
        )


def files_of(run: Path, patterns: Sequence[str] = RUN_FILES) -> list[Path]:
    """Return the files and folders in `run` that a run consists of, or those of them that fit `patterns`."""
    return sorted({path for pattern in patterns for path in run.glob(pattern)})


def check_is_run(folder: Path) -> None:
    """Raise UserError when `folder` is not a run, but holds files that a run would overwrite."""
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
    if isinstance(product, str) and not _is_product(product):
        wrong.append("product")
    earlier, step = record.get("earlier", []), record.get("step")
    wrong += [] if isinstance(step, int | None) else ["step"]
    wrong += [] if isinstance(earlier, list) and all(map(_is_entry, earlier)) else ["earlier"]
    launches = record.get("launches", [])
    wrong += [] if isinstance(launches, list) and all(isinstance(one, dict) for one in launches) else ["launches"]
    if wrong:
        raise UserError(f"{path / 'run.json'} is damaged: {', '.join(wrong)}")
    found: dict[str, Any] = {name: record.get(name) for name in _FIELDS}
    run = RunFolder(path=path, kind=record["kind"], **found | {"step": step, "earlier": earlier, "launches": launches})
    if run.status == "running" and is_held(folder_of_work(path)) is False:
        run.status = "stopped"
    return run


def folder_of_work(path: Path) -> Path:
    """Return the folder that a command locks while it works on the run in `path`: where its product lies."""
    with contextlib.suppress(UserError, TypeError, KeyError):
        return Path(read_json(path / LOCATION)["folder"])
    return path


def record_end(run: RunFolder, error: BaseException) -> None:
    """Record that the run was stopped or failed, if that can be written; the caller raises the error."""
    if not run.is_finished:
        run.status = "stopped" if isinstance(error, Stopped | KeyboardInterrupt) else "failed"
        with contextlib.suppress(UserError, OSError):
            run.save()


def readable_runs(root: Path, kind: str) -> Iterator[RunFolder]:
    """Runs of `kind` in order of their names; folders that can't be read are passed over."""
    for marker in sorted((root / kind).glob("*/run.json")):
        try:
            yield open_run(marker.parent)
        except (UserError, OSError, ValueError, RecursionError):
            continue


def _is_product(name: Any) -> bool:
    return isinstance(name, str) and (Path(name).name == name or Path(name).is_absolute())


def _is_entry(entry: Any) -> bool:
    types = _FIELDS | {"step": int | None}
    is_record = isinstance(entry, dict) and entry.keys() == set(_OF_A_PRODUCT)
    return is_record and _is_product(entry["product"]) and all(isinstance(entry[n], types[n]) for n in _OF_A_PRODUCT)


def finished_runs(root: Path, kind: str) -> list[RunFolder]:
    """Return the products of all runs of `kind` that are there, newest first, a run once for each of its products.

    Folders that can't be read are passed over.
    """
    runs = [product for run in readable_runs(root, kind) for product in run.products]
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
