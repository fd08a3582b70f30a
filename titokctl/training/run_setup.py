"""The run folder of a training command: its name, its lock, and how a run is begun, resumed, extended or refused."""

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from titokctl.config.recipe_files import to_yaml
from titokctl.config.training import TrainingConfig
from titokctl.distributed.group import Group
from titokctl.errors import UserError
from titokctl.formats.atomic import make_folder, write_bytes
from titokctl.formats.run_folder import RUN_FILES, RunFolder, check_is_run, files_of, open_run, record_end
from titokctl.formats.unfinished import Unfinished
from titokctl.readable import counted

CostT = TypeVar("CostT")
_RECORD = "run.json"
_ONLY_WATCHING = frozenset(
    ("log_every", "evaluate_every", "checkpoint_every", "keep_checkpoints", "keep_every", "log", "tensorboard")
)
# Absent in runs of older versions, and then as good as null.
_NULL_UNLESS_SET = frozenset(("keep_best", "stop_after"))
# What a new training in the same folder replaces: everything but the record and the products.
_OF_ONE_TRAINING = tuple(name for name in RUN_FILES if name != _RECORD and not name.startswith("weights"))


@dataclass(frozen=True)
class RunPlan:
    """The run that a training command would begin, resume or return.

    Args:
        output: the run folder.
        state: "new", "begun" or "finished".
        step: the last saved step, from which the run would resume.
        steps: the length of the run.
        removes: paths of the existing run that would be deleted; its products stay.
    """

    output: Path
    state: str
    step: int
    steps: int
    removes: Sequence[str] = ()

    @property
    def replaces(self) -> bool:
        """True if an existing run would be replaced."""
        return bool(self.removes)

    def in_words(self) -> str:
        """Return one line for people."""
        if self.state == "finished":
            return f"{self.output} is finished already; --overwrite trains it again"
        if self.state == "begun":
            return f"run: {self.output}, would resume from step {self.step:,} of {self.steps:,}"
        deleted = f", in place of the existing one: deletes {', '.join(self.removes)}" if self.replaces else ""
        return f"run: {self.output}, new{deleted}"


@dataclass(frozen=True)
class TrainingPlan(Generic[CostT]):
    """The plan of a training command: the resolved recipe, the cost of the run, and the run folder."""

    recipe: BaseModel
    cost: CostT
    run: RunPlan


@dataclass(frozen=True)
class TrainingRun:
    """A run that was asked for.

    Without a `name` the folder is named after the recipe and a hash of the resolved recipe and of `identity`, so that
    the same command finds the same run, and another recipe another one. With a constant schedule the number of steps
    may grow, so it does not count in the hash.

    Args:
        runs: the runs folder.
        kind: "tokenizer", "proxy" or "generator".
        stem: the first part of the default name.
        recipe: the resolved recipe.
        inputs: the record of what the run is trained on.
        identity: hashes of the data and of the weights that the run starts from.
        name: the name of the folder.
        overwrite: start over; of an existing run only the products stay, as earlier ones.
    """

    runs: Path
    kind: str
    stem: str
    recipe: BaseModel
    inputs: dict[str, Any]
    identity: str
    name: str | None
    overwrite: bool

    def plan(self) -> RunPlan:
        """Return what `opened` would do; nothing is written. Raises UserError where it would."""
        run = self._new()
        is_there, steps = (run.path / _RECORD).exists(), run.settings["training"]["steps"]
        Unfinished(run.path, run.path, _RECORD).check_not_at_work()
        check_is_run(run.path)
        if self.overwrite or not is_there or _has_failed_at_once(run.path):
            return RunPlan(run.path, "new", 0, steps, [str(path) for path in files_of(run.path, _OF_ONE_TRAINING)])
        found = _reopened(run)
        return RunPlan(run.path, "finished" if found.is_finished else "begun", found.saved_step() or 0, steps)

    @contextlib.contextmanager
    def opened(self, say: Callable[[str], None], group: Group, launch: dict[str, Any]) -> Iterator[RunFolder]:
        """Lock the run folder and open it. Rank 0 owns the folder and broadcasts its path; the others only read.

        `launch` is recorded unless the run is finished already.

        Raises UserError when an existing run has other settings (they are listed), or another process works on it.
        """
        if not group.is_main:
            yield open_run(Path(group.from_main(None)))
            return
        run = self._new()
        work = Unfinished(run.path, run.path, _RECORD, owned=_OF_ONE_TRAINING)
        with work.locked():
            check_is_run(run.path)
            starts_over = self.overwrite or _has_failed_at_once(run.path)
            run = self._started_over(run, work, launch, say) if starts_over else self._begun(run, launch)
            group.from_main(str(run.path))
            say(_finished(run) if run.is_finished else f"run: {run.path}")
            try:
                yield run
            except BaseException as error:
                record_end(run, error)
                raise

    def _new(self) -> RunFolder:
        settings = self.recipe.model_dump(mode="json")
        free = _free(settings, _may_grow(settings))
        name = self.name or f"{self.stem}-{_digest([_without(settings, free), self.identity])}"
        inputs = self.inputs | {"identity": self.identity}
        return RunFolder(path=self.runs / self.kind / name, kind=self.kind, settings=settings, inputs=inputs)

    def _started_over(
        self, wanted: RunFolder, work: Unfinished, launch: dict[str, Any], say: Callable[[str], None]
    ) -> RunFolder:
        """Return a new run; of one that is there only the products stay, as earlier ones."""
        wanted.launches = [launch]
        with contextlib.suppress(UserError):  # a damaged record names no products
            before = open_run(wanted.path)
            before.begin_again({})
            wanted.earlier = before.earlier
            for product in wanted.products[:1]:
                say(f"the finished product is kept as {product.reference}")
        work.clear_all_but_record()
        wanted.save()  # from here on the old run is gone; before, it was whole but for its checkpoints
        self._write_recipe(wanted)
        return wanted

    def _begun(self, wanted: RunFolder, launch: dict[str, Any]) -> RunFolder:
        """Return the run on disk, or a new one, with its record and its recipe up to date."""
        run = _reopened(wanted) if (wanted.path / _RECORD).exists() else wanted
        is_changed = run.settings != wanted.settings
        if not run.is_finished or is_changed:
            run.status, run.settings = run.status if run.is_finished else "running", wanted.settings
            run.launches += [] if run.is_finished else [launch]
            run.save()
        self._write_recipe(run)
        return run

    def _write_recipe(self, run: RunFolder) -> None:
        """Write recipe.yaml after the record, which says whose folder it is, unless the same is there."""
        path, text = run.path / "recipe.yaml", to_yaml(self.recipe).encode()
        if not path.is_file() or path.read_bytes() != text:
            write_bytes(path, text)


def check_folder(folder: Path, dry: bool = False) -> None:
    """Raise UserError when `folder` doesn't exist and can't be made; a `dry` check does not try to make it."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    if not missing:
        return
    if not dry:
        make_folder(missing[-1])
        with contextlib.suppress(OSError):  # another run may have begun in it
            missing[-1].rmdir()
    elif not os.access(missing[-1].parent, os.W_OK | os.X_OK) or not missing[-1].parent.is_dir():
        raise UserError(f"cannot make the folder {folder}", "name another one")


def check_division(training: TrainingConfig, processes: int) -> None:
    """Raise UserError when the processes can't share a batch evenly."""
    size = training.global_batch_size
    if size % processes:
        step = math.lcm(processes, training.micro_batch_size or 1)  # a batch consists of whole micro batches, too
        fitting = max(1, size // step) * step
        raise UserError(
            f"training.global_batch_size {size:,} is not a multiple of {counted(processes, 'processes')}",
            f"use another number of processes, or --set training.global_batch_size={fitting}",
        )


def _has_failed_at_once(folder: Path) -> bool:
    """Return True if the run in `folder` failed before its first checkpoint: it has nothing that could be resumed."""
    with contextlib.suppress(UserError):
        run = open_run(folder)
        return run.status == "failed" and run.saved_step() is None
    return False


def _reopened(wanted: RunFolder) -> RunFolder:
    """Return the run on disk if it has the wanted settings; it may become longer if its schedule allows that."""
    found = open_run(wanted.path)
    old, new = (run.settings["training"].get("steps", 0) for run in (found, wanted))
    grows = old < new and _may_grow(wanted.settings)
    free = _free(wanted.settings, grows)

    def settings_of(record: dict[str, Any]) -> dict[str, Any]:
        start = {"data, or weights to start from": _short(str(record["inputs"].get("identity")))}
        return _without(record["settings"], free) | start

    try:
        wanted_settings = settings_of({"settings": wanted.settings, "inputs": wanted.inputs})
        Unfinished(wanted.path, wanted.path, _RECORD, settings_of, option="--name").resumes(wanted_settings)
    except UserError as error:
        if grows or old >= new:
            raise
        reason = "; only runs with a constant or warmup-stable-decay schedule can be made longer"
        raise UserError(error.message, error.hint + reason) from error
    if grows and found.is_finished:
        found.begin_again(found.settings)
    return found


def _may_grow(settings: dict[str, Any]) -> bool:
    """Return True if the length may change; under a cosine it decides the rate of each step."""
    schedules = [section["schedule"] for section in (settings, settings.get("adversary")) if section]
    return all(schedule["kind"] != "cosine" for schedule in schedules)


def _free(settings: dict[str, Any], grows: bool) -> Set[str]:
    """Return the settings of training that may change from one start of a run to the next."""
    decides = {"evaluate_every"} if settings["training"]["keep_best"] else set()
    return (_ONLY_WATCHING - decides) | ({"steps"} if grows else set())


def _without(settings: dict[str, Any], free: Set[str]) -> dict[str, Any]:
    training = settings.get("training", {})
    absent = free | {name for name in _NULL_UNLESS_SET if training.get(name) is None}
    return settings | {"training": {k: v for k, v in training.items() if k not in absent}}


def _finished(run: RunFolder) -> str:
    steps = run.settings["training"]["steps"]
    early = f", with the weights of step {run.step:,} of {steps:,}" if run.step and run.step < steps else ""
    return f"{run.path} is finished already{early}; --overwrite trains it again"


def _short(identity: str) -> str:
    return "/".join(part[:12] for part in identity.split("/"))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
