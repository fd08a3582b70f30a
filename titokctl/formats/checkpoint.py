"""Checkpoints: everything a run needs to go on bit for bit.

Specification: `<folder>/step-00001000/` holds tensors.safetensors (weights, EMA, optimizer moments; names say which)
and scalars.json (numbers and settings). state.json is the commit marker: format "titokctl/checkpoint", format_version
1, step, and size and SHA-256 of the two. The folder is written under a temporary name, flushed and renamed, so a
folder with a final name is whole; a damaged one (a disk's fault, an edit) fails its hashes and the one before is used.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from titokctl.errors import UserError
from titokctl.formats.atomic import atomic_path, disk_errors, read_json, remove_leftovers

FORMAT = "titokctl/checkpoint"
FORMAT_VERSION = 1
_FILES = ("tensors.safetensors", "scalars.json")
_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """State after `step` optimizer steps: named tensors on the CPU, and JSON values."""

    step: int
    tensors: dict[str, torch.Tensor]
    scalars: dict[str, Any]


def save(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write `checkpoint` under `folder`, then remove all but the newest `keep`. Returns its path.

    Raises UserError when the disk is full; older checkpoints then stay as they were.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder, "step-*")
    target = folder / f"step-{checkpoint.step:08d}"
    with atomic_path(target) as temporary, disk_errors(target):
        temporary.mkdir()
        _write_tensors(temporary / _FILES[0], checkpoint.tensors, target)
        (temporary / _FILES[1]).write_text(json.dumps(checkpoint.scalars))
        state = {"format": FORMAT, "format_version": FORMAT_VERSION, "step": checkpoint.step}
        state["files"] = {name: _fingerprint(temporary / name) for name in _FILES}
        (temporary / "state.json").write_text(json.dumps(state, indent=1))
    for old in _step_folders(folder)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def load_newest(folder: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that is whole, or None; damaged ones are passed over with a word through `say`."""
    for path in _step_folders(folder):
        try:
            return _load(path)
        except UserError as error:
            say(f"{error.message}; trying the checkpoint before it")
    return None


def _load(path: Path) -> Checkpoint:
    state = read_json(path / "state.json")
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{path} is not a checkpoint")
    if state.get("format_version", 0) > FORMAT_VERSION:
        raise UserError(f"{path} was written by a newer titokctl", "upgrade titokctl")
    for name in _FILES:
        if not (path / name).is_file() or _fingerprint(path / name) != state["files"].get(name):
            raise UserError(f"{path / name} is damaged (its hash is not the recorded one)")
    try:
        tensors = load_file(path / _FILES[0])
    except SafetensorError as error:
        raise UserError(f"{path / _FILES[0]} is damaged ({error})") from error
    return Checkpoint(int(state["step"]), tensors, read_json(path / _FILES[1]))


def _write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], target: Path) -> None:
    try:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path)
    except SafetensorError as error:
        # safetensors wraps the operating system's errors in its own class.
        hint = "free some space and run the same command again; older checkpoints are kept"
        raise UserError(f"cannot write {target} ({error})", hint) from error


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _step_folders(folder: Path) -> list[Path]:
    found = [p for p in folder.glob("step-*") if _NAME.fullmatch(p.name)] if folder.is_dir() else []
    return sorted(found, key=lambda p: int(p.name.removeprefix("step-")), reverse=True)
