"""The columns of `titokctl runs ls` that are not in run.json as such: differing settings, scores, size on disk."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from titokctl.config.differences import flatten
from titokctl.errors import UserError
from titokctl.formats.atomic import read_json
from titokctl.formats.evaluation import RECONSTRUCTION, read_evaluations
from titokctl.formats.metrics_log import MetricsLog
from titokctl.formats.run_folder import KINDS, RunFolder, open_run

METRICS = "metrics.jsonl"
_LONGEST_LIST = 8  # longer ones, such as the class of every sample, say nothing in a table
_HASH_DIGITS = 12


def differing_settings(runs: Sequence[RunFolder]) -> list[dict[str, Any]]:
    """Return for each run its settings that are not the same in all runs of its kind, as field names to values.

    A field that a run lacks is missing from its dictionary. Long lists are left out, and hashes are cut to 12 digits.
    """
    settings = [flatten(run.settings) for run in runs]
    values: dict[tuple[str, str], set[str]] = defaultdict(set)
    for kind in {run.kind for run in runs}:
        of_kind = [found for run, found in zip(runs, settings, strict=True) if run.kind == kind]
        for name in {name for found in of_kind for name in found}:
            values[kind, name] = {repr(found.get(name)) for found in of_kind}
    return [
        {name: _short(name, value) for name, value in sorted(found.items()) if _is_told(value, values[run.kind, name])}
        for run, found in zip(runs, settings, strict=True)
    ]


def scores_of(run: RunFolder) -> dict[str, float]:
    """Return the numbers that say how good a run is: kept results of its images, else its newest held-out numbers."""
    found: dict[str, float] = {}
    for path in sorted(run.path.glob("*.evaluation-*.json")):
        try:
            found |= read_evaluations(path)[0]["metrics"]
        except UserError:
            continue  # `titokctl compare` names it
    found |= _reconstruction(run.path / RECONSTRUCTION)
    newest = {k: v for k, v in MetricsLog(run.path / METRICS).newest_values().items() if isinstance(v, int | float)}
    held_out = {
        name: value for name, value in newest.items() if name.startswith(("held_out", "val_")) and "_at_" not in name
    }
    return found | (held_out or {name: newest[name] for name in ("loss",) if name in newest})


def size_of(folder: Path) -> int:
    """Return the bytes of all files in `folder`; links are not followed."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += 0 if path.is_dir() else path.lstat().st_size
        except OSError:  # removed meanwhile
            continue
    return total


def unreadable_runs(root: Path) -> list[tuple[str, Path, str]]:
    """Return kind, folder and problem of each folder in `root` that is a run by its place, but can't be read as one."""
    found = []
    for kind in KINDS:
        for folder in sorted(path for path in (root / kind).glob("*") if path.is_dir()):
            try:
                if (folder / "run.json").exists():
                    open_run(folder)
                elif folder.name[0] != "." and any(folder.iterdir()):
                    found.append((kind, folder, "no run.json"))
            except (UserError, OSError, ValueError, RecursionError):
                found.append((kind, folder, "damaged"))
    return found


def _reconstruction(path: Path) -> dict[str, float]:
    try:
        record = read_json(path) if path.is_file() else {}
    except (UserError, OSError, ValueError):
        return {}
    metrics = record.get("metrics", {}) if isinstance(record, dict) else {}
    return {name: value for name, value in metrics.items() if isinstance(value, int | float)}


def _is_told(value: Any, values: set[str]) -> bool:
    return len(values) > 1 and not (isinstance(value, list) and len(value) > _LONGEST_LIST)


def _short(name: str, value: Any) -> Any:
    return value[:_HASH_DIGITS] if name.endswith("sha256") and isinstance(value, str) else value
