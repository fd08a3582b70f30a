"""Checkpoints: everything a run needs to resume bit for bit.

Specification: `<folder>/step-00001000/` holds tensors-0.safetensors, tensors-1.safetensors, ... (weights, EMA,
optimizer moments; names say which; large states are spread over several files, so that they are written and hashed side
by side) and scalars.json (numbers and settings). state.json is the commit marker: format "titokctl/checkpoint",
format_version 2, step, for every other file its size and SHA-256, and sha256, that of all this as compact JSON with
sorted keys (the first ones lack it). The folder is written under a temporary name, flushed and renamed, so a folder
with a final name is whole; a damaged one (a disk's fault, an edit) fails its hashes and the one before is used. In
format_version 1 there was one file, tensors.safetensors.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from titokctl.errors import UserError
from titokctl.formats.atomic import atomic_path, check_version, file_sha256, read_json, remove_leftovers
from titokctl.formats.weights_file import write_tensors

FORMAT = "titokctl/checkpoint"
FORMAT_VERSION = 2
_SCALARS = "scalars.json"
_TENSORS = re.compile(r"tensors(-\d+)?\.safetensors")
_NAME = re.compile(r"step-(\d{8,})")
_FILE_BYTES = 256 << 20
_MOST_FILES = 8


@dataclass(frozen=True)
class Checkpoint:
    """State after `step` optimizer steps: named tensors, and JSON values."""

    step: int
    tensors: dict[str, torch.Tensor]
    scalars: dict[str, Any]


@dataclass(frozen=True)
class Policy:
    """Which checkpoints stay: the newest `keep`, those whose step is a multiple of `keep_every`, and that of `best`."""

    keep: int
    keep_every: int | None = None
    best: int | None = None

    def keeps(self, step: int) -> bool:
        """Return True if the checkpoint of `step` stays however old it is."""
        return step == self.best or (self.keep_every is not None and step % self.keep_every == 0)


class CheckpointWriter:
    """Write checkpoints in the background; training waits only while the state is copied to the host's memory.

    A context: at its end the last checkpoint is on the disk. A failure to write is raised by the next `save`, or there.

    Args:
        folder: where the step folders go.
        policy: which of them stay.
    """

    def __init__(self, folder: Path, policy: Policy) -> None:
        self._folder, self._policy = folder, policy
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[Path] | None = None
        self._copy: dict[str, torch.Tensor] = {}  # kept, since memory that is new costs more than what is copied

    def save(self, checkpoint: Checkpoint, best: int | None = None) -> None:
        """Copy the state and write the copy; an earlier one that is still being written is waited for.

        The checkpoint of step `best` stays. Raises UserError when that one could not be written.
        """
        self.wait()
        self._copy = {name: _copied(t.detach(), self._copy.get(name)) for name, t in checkpoint.tensors.items()}
        state = Checkpoint(checkpoint.step, self._copy, checkpoint.scalars)
        self._writing = self._thread.submit(save, self._folder, state, replace(self._policy, best=best))

    def wait(self) -> None:
        """Wait until everything is on the disk. Raises UserError when it could not be written."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown()
        if kind is None:
            self.wait()


def _copied(tensor: torch.Tensor, into: torch.Tensor | None) -> torch.Tensor:
    """Return the tensor on the CPU, in the memory of `into` if it fits."""
    if into is None or (into.shape, into.dtype) != (tensor.shape, tensor.dtype):
        return tensor.to("cpu", copy=True)
    return into.copy_(tensor)


def save(folder: Path, checkpoint: Checkpoint, policy: Policy) -> Path:
    """Write `checkpoint` under `folder`, then remove what `policy` does not keep. Returns its path.

    Raises UserError when the disk is full; older checkpoints then stay as they were.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder, "step-*")
    target = folder / f"step-{checkpoint.step:08d}"
    with atomic_path(target) as temporary:
        temporary.mkdir()
        (temporary / _SCALARS).write_text(json.dumps(checkpoint.scalars))
        try:
            names = _write_tensors(temporary, checkpoint.tensors)
        except UserError as error:
            raise UserError(error.message.replace(str(temporary), str(target)), error.hint) from error
        state = {"format": FORMAT, "format_version": FORMAT_VERSION, "step": checkpoint.step}
        state["files"] = _fingerprints(temporary, [_SCALARS, *names])
        state["sha256"] = _sha256_of(state)
        (temporary / "state.json").write_text(json.dumps(state, indent=1))
    # Later ones are damaged, since a run goes on from the newest that is whole: they must not push others out.
    whole = [path for path in _step_folders(folder) if step_of(path) <= checkpoint.step]
    for old in whole[policy.keep :]:
        if not policy.keeps(step_of(old)):
            shutil.rmtree(old, ignore_errors=True)
    return target


def load_newest(folder: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """Return the newest whole checkpoint, or None; damaged ones are skipped and reported through `say`."""
    for path in _step_folders(folder):
        try:
            return load(path)
        except UserError as error:
            say(f"{error.message}; trying the checkpoint before it")
    return None


def load_step(folder: Path, step: int) -> Checkpoint:
    """Return the checkpoint of `step` in `folder`. Raises UserError when it is missing or damaged."""
    return load(folder / f"step-{step:08d}")


def steps_in(folder: Path) -> list[int]:
    """Return the steps whose checkpoints are in `folder`, ascending; nothing is read."""
    return sorted(map(step_of, _step_folders(folder)))


def is_checkpoint(path: Path) -> bool:
    """Return True if `path` is the folder of a checkpoint, by its name and its marker."""
    return _NAME.fullmatch(path.name) is not None and (path / "state.json").is_file()


def load(path: Path) -> Checkpoint:
    """Return the checkpoint in the folder `path`. Raises UserError when it is damaged or of a newer titokctl."""
    state = read_json(path / "state.json")
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{path} is not a checkpoint")
    check_version(state.get("format_version", 0), FORMAT_VERSION, path)
    recorded = state.get("files")
    if not isinstance(recorded, dict) or not all(name == _SCALARS or _TENSORS.fullmatch(name) for name in recorded):
        raise UserError(f"{path / 'state.json'} is damaged: it names files that no checkpoint has")
    # Without a checksum, as in older checkpoints, the name of the folder tells the step.
    if state.get("sha256", _sha256_of(state)) != _sha256_of(state) or state.get("step") != step_of(path):
        raise UserError(f"{path / 'state.json'} is damaged: its checksum or its step does not fit")
    for name, found in _fingerprints(path, list(recorded)).items():
        if found != recorded[name]:
            raise UserError(f"{path / name} is damaged (its hash is not the recorded one)")
    tensors: dict[str, torch.Tensor] = {}
    for name in recorded:
        if name != _SCALARS:
            tensors |= _read_tensors(path / name)
    return Checkpoint(int(state["step"]), tensors, read_json(path / _SCALARS))


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error})") from error


def _write_tensors(folder: Path, tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Write the tensors into files of about the same size, side by side. Returns their names."""
    total = sum(t.nbytes for t in tensors.values())
    count = min(max(total // _FILE_BYTES, 1), _MOST_FILES)
    files: list[dict[str, torch.Tensor]] = [{} for _ in range(count)]
    sizes = [0] * count
    for name in sorted(tensors, key=lambda name: (-tensors[name].nbytes, name)):
        smallest = sizes.index(min(sizes))
        files[smallest][name] = tensors[name]
        sizes[smallest] += tensors[name].nbytes
    named = {f"tensors-{i}.safetensors": part for i, part in enumerate(files)}
    with ThreadPoolExecutor(count) as pool:
        for written in [pool.submit(write_tensors, folder / name, part, {}) for name, part in named.items()]:
            written.result()
    return list(named)


def _fingerprints(folder: Path, names: list[str]) -> dict[str, dict[str, Any] | None]:
    with ThreadPoolExecutor(len(names)) as pool:
        return dict(zip(names, pool.map(_fingerprint, [folder / name for name in names]), strict=True))


def _fingerprint(path: Path) -> dict[str, Any] | None:
    """Return size and SHA-256 of a file; None if it does not exist."""
    if not path.is_file():
        return None
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def _sha256_of(state: Mapping[str, Any]) -> str:
    covered = {name: value for name, value in state.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(covered, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def step_of(path: Path) -> int:
    """Return the step that the name of a checkpoint's folder says."""
    return int(path.name.removeprefix("step-"))


def _step_folders(folder: Path) -> list[Path]:
    found = [p for p in folder.glob("step-*") if _NAME.fullmatch(p.name)] if folder.is_dir() else []
    return sorted(found, key=step_of, reverse=True)
