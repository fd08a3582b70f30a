"""Where a training run lives, and whether it goes on, is done already, or must not be touched."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from titokctl.config.differences import flat_differences
from titokctl.config.recipe_files import to_yaml
from titokctl.config.training import TrainingConfig
from titokctl.distributed.group import Group
from titokctl.dry_run import is_dry_run
from titokctl.errors import Stopped, UserError
from titokctl.formats.atomic import make_folder, write_bytes
from titokctl.formats.folder_lock import at_work, folder_lock, is_held
from titokctl.formats.run_folder import RunFolder, open_run

_ONLY_WATCHING = frozenset(
    ("log_every", "evaluate_every", "checkpoint_every", "keep_checkpoints", "keep_every", "tensorboard")
)


@dataclass(frozen=True)
class RunPlan:
    """What a training command would do.

    Args:
        output: the run folder.
        state: "new", "begun" or "finished".
        step: the last step that is saved, from which it would go on.
        steps: how many there are to be.
        replaces: whether a run that is there goes.
    """

    output: Path
    state: str
    step: int
    steps: int
    replaces: bool

    def in_words(self) -> str:
        """A line for people."""
        if self.state == "finished":
            return f"{self.output} is finished already; --overwrite trains it again"
        if self.state == "begun":
            return f"run: {self.output}, would go on from step {self.step:,} of {self.steps:,}"
        return f"run: {self.output}, new" + (", in place of the one that is there" if self.replaces else "")


@contextlib.contextmanager
def training_run(
    root: Path,
    kind: str,
    stem: str,
    recipe: BaseModel,
    inputs: dict[str, Any],
    identity: str,
    name: str | None,
    overwrite: bool,
    say: Callable[[str], None],
    group: Group,
) -> Iterator[RunFolder]:
    """The locked run folder of a training command.

    Without a `name` the folder is called after the recipe and a hash of the resolved recipe and of `identity` (what
    the data are), so that the same command finds the same run, and another recipe another one. A constant schedule is
    the same for any number of steps, so there the number may grow, and does not count in the hash.
    The first process of the group owns the folder and says which it is; the others only read.

    Raises UserError when a named run was made with other settings (they are listed), or is at work elsewhere.
    """
    if not group.is_main:
        yield open_run(Path(group.from_main(None)))
        return
    run = _wanted(root, kind, stem, recipe, inputs, identity, name)
    folder, settings = run.path, run.settings
    with folder_lock(folder):
        if overwrite:
            _empty(folder)
        is_new = not (folder / "run.json").exists()
        run = run if is_new else _reopened(run)
        if is_new or run.settings != settings:
            write_bytes(folder / "recipe.yaml", to_yaml(recipe).encode())
        if not run.is_finished or run.settings != settings:
            run.status, run.settings = run.status if run.is_finished else "running", settings
            run.save()
        group.from_main(str(folder))
        finished = f"{run.path} is finished already; --overwrite trains it again"
        say(finished if run.is_finished else f"run: {run.path}")
        try:
            yield run
        except BaseException as error:
            _record_end(run, error)
            raise


def plan_training_run(
    root: Path, kind: str, stem: str, recipe: BaseModel, identity: str, name: str | None, overwrite: bool
) -> RunPlan:
    """What `training_run` would do with the same arguments; nothing is written.

    Raises UserError where it would.
    """
    run = _wanted(root, kind, stem, recipe, {}, identity, name)
    is_there, steps = (run.path / "run.json").exists(), run.settings["training"]["steps"]
    if is_held(run.path):
        raise at_work(run.path)
    if overwrite or not is_there:
        return RunPlan(run.path, "new", 0, steps, is_there)
    found = _reopened(run)
    return RunPlan(run.path, "finished" if found.is_finished else "begun", found.saved_step() or 0, steps, False)


def check_place(folder: Path) -> None:
    """Raise UserError when `folder` isn't there and can't be made; nothing is left behind."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    if not missing:
        return
    if not is_dry_run():
        make_folder(missing[-1])
        with contextlib.suppress(OSError):  # another run may have begun in it
            missing[-1].rmdir()
    elif not os.access(missing[-1].parent, os.W_OK | os.X_OK) or not missing[-1].parent.is_dir():
        raise UserError(f"cannot make the folder {folder}", "name another one")


def check_division(training: TrainingConfig, processes: int) -> None:
    """Raise UserError when the processes can't share a batch evenly."""
    size = training.global_batch_size
    if size % processes:
        fitting = max(1, size // processes) * processes
        raise UserError(
            f"training.global_batch_size {size:,} is not a multiple of {processes} processes",
            f"use another number of processes, or --set training.global_batch_size={fitting}",
        )


def _wanted(
    root: Path,
    kind: str,
    stem: str,
    recipe: BaseModel,
    inputs: dict[str, Any],
    identity: str,
    name: str | None,
) -> RunFolder:
    """The run that is asked for, as it would begin."""
    settings = recipe.model_dump(mode="json")
    free = _ONLY_WATCHING | ({"steps"} if _may_grow(settings) else set())
    folder = root / kind / (name or f"{stem}-{_digest([_without(settings, free), identity])}")
    return RunFolder(path=folder, kind=kind, settings=settings, inputs=inputs | {"identity": identity})


def _record_end(run: RunFolder, error: BaseException) -> None:
    """Write down that the run was stopped, or failed; what ended it is raised whether that succeeds or not."""
    if not run.is_finished:
        run.status = "stopped" if isinstance(error, Stopped | KeyboardInterrupt) else "failed"
        with contextlib.suppress(UserError, OSError):
            run.save()


def _may_grow(settings: dict[str, Any]) -> bool:
    """Whether the length may change; under a cosine it decides the rate of every step."""
    schedules = [section["schedule"] for section in (settings, settings.get("adversary")) if section]
    return all(schedule["kind"] != "cosine" for schedule in schedules)


def _without(settings: dict[str, Any], free: Set[str]) -> dict[str, Any]:
    training = settings.get("training", {})
    return settings | {"training": {k: v for k, v in training.items() if k not in free}}


def _reopened(wanted: RunFolder) -> RunFolder:
    """The run on disk, if it is the one that is wanted; longer than it was, if its schedule allows that."""
    found = open_run(wanted.path)
    before, after = (_without(run.settings, _ONLY_WATCHING) for run in (found, wanted))
    hint = "run it with the settings it was started with, choose another --name, or start over with --overwrite"
    old, new = before["training"].get("steps", 0), after["training"]["steps"]
    if old < new and _may_grow(after):
        before, after = (_without(settings, {"steps"}) for settings in (before, after))
        found.status = "running"
    elif old < new:
        hint += "; only runs with a constant or warmup-stable-decay schedule can be made longer"
    changed = flat_differences(before, after)
    old_data, new_data = (str(run.inputs.get("identity")) for run in (found, wanted))
    if old_data != new_data:
        changed.append(f"data, or weights it starts from: {_short(old_data)} -> {_short(new_data)}")
    if changed:
        lines = "\n".join(f"  {line}" for line in changed)
        raise UserError(f"{wanted.path} was started with other settings:\n{lines}", hint)
    return found


def _short(identity: str) -> str:
    return "/".join(part[:12] for part in identity.split("/"))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def _empty(folder: Path) -> None:
    """Remove all of the folder but its lock, which is held."""
    for path in folder.iterdir():
        if path.name == ".lock":
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()
