"""`titokctl runs rm` and `titokctl runs prune`: remove runs and earlier products that nothing refers to."""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from titokctl.context import Context
from titokctl.errors import UserError
from titokctl.formats.atomic import disk_errors
from titokctl.formats.folder_lock import at_work, folder_lock, is_held
from titokctl.formats.run_folder import KINDS, RunFolder, folder_of_work, open_run, readable_runs
from titokctl.jobs.machine.runs import find_run
from titokctl.readable import counted, first_few

_PRODUCTS = "weights*.safetensors"
_NAMED = 5


@dataclass(frozen=True)
class Removed:
    """Something that is removed, or would be: its reference, what it is, and the bytes that become free."""

    reference: str
    what: str
    num_bytes: int


@dataclass(frozen=True)
class RemoveRun:
    """Remove a run with all of its products, or one earlier product of it.

    Args:
        name: a run as `find_run` takes it, or RUN@HASH for an earlier product.
    """

    name: str

    def plan(self, context: Context) -> list[Removed]:
        """Return what would be removed.

        Raises UserError when the run does not exist, something refers to it, or a process works on it.
        """
        run, _ = self._found(context)
        if is_held(folder_of_work(run.path)):
            raise at_work(run.path)
        return [self._checked(context)]

    def run(self, context: Context) -> list[Removed]:
        """Remove it, and return what was removed. Raises as `plan`."""
        run, product = self._found(context)
        with folder_lock(run.path):
            removed = self._checked(context)
            _remove(product or run)
        return [removed]

    def _checked(self, context: Context) -> Removed:
        """Return what is removed. Raises UserError when something refers to it."""
        run, product = self._found(context)
        kept = [p for p in run.products if product is not None and p.product != product.product]
        lost = run.products if product is None else [product]
        users = list(dict.fromkeys(user for one in lost for user in users_of(one, kept, context.runs)))
        if users:
            verb, them = ("refers", "it") if len(users) == 1 else ("refer", "them")
            raise UserError(
                f"{self.name} is in use: {first_few(users, _NAMED)} {verb} to it",
                f"remove {them} first: titokctl runs rm {users[0]}",
            )
        return (
            _earlier(product) if product else Removed(str(run.path), f"{run.status} {run.kind} run", _bytes(run.path))
        )

    def _found(self, context: Context) -> tuple[RunFolder, RunFolder | None]:
        name, _, version = self.name.rpartition("@") if "@" in self.name else (self.name, "", "")
        run = find_run(name, context.runs)
        if not version:
            return run, None
        fitting = [p for p in run.products if p.is_earlier and p.hashes.get("weights_sha256", "").startswith(version)]
        if len(fitting) != 1:
            there = ", ".join(p.reference for p in run.products if p.is_earlier) or "none"
            raise UserError(f"{name} has no earlier product @{version}", f"it has: {there}")
        return run, fitting[0]


@dataclass(frozen=True)
class Prune:
    """Remove all earlier products that nothing in the runs folder refers to, and what failed or killed runs left.

    Token caches lie outside the runs folder and are not searched: one whose tokenizer is an earlier product keeps it
    only through a generator that was trained on the cache.

    Args:
        unfinished: also remove stopped and failed runs without a product.
    """

    unfinished: bool = False

    def plan(self, context: Context) -> list[Removed]:
        """Return what would be removed; nothing is changed."""
        return [removed for removed, _ in self._found(context)]

    def run(self, context: Context) -> list[Removed]:
        """Remove it, and return what was removed. Runs that a process works on are left as they are."""
        removed = []
        for one, target in self._found(context):
            folder = target.parent if isinstance(target, Path) else target.path
            with contextlib.suppress(UserError), folder_lock(folder):
                _remove(target)
                removed.append(one)
        return removed

    def _found(self, context: Context) -> Iterator[tuple[Removed, RunFolder | Path]]:
        for run in [run for kind in KINDS for run in readable_runs(context.runs, kind)]:
            if is_held(folder_of_work(run.path)):
                continue
            products = run.products
            if self.unfinished and not products and not run.is_finished:
                yield Removed(str(run.path), f"{run.status} {run.kind} run", _bytes(run.path)), run
                continue
            for product in products:
                others = [p for p in products if p.product != product.product]
                if product.is_earlier and not users_of(product, others, context.runs):
                    yield _earlier(product), product
            named = {run.product, *(entry["product"] for entry in run.earlier)}
            for path in run.path.glob(_PRODUCTS):
                if path.name not in named and path.name != "weights.safetensors":
                    yield Removed(str(path), "file of a run that was killed", path.stat().st_size), path


def users_of(product: RunFolder, kept: list[RunFolder], root: Path) -> list[str]:
    """Return the runs in `root` whose inputs name this product by a hash, as kind/name.

    A run that names its encoder alone doesn't need it while one of the `kept` products has the same encoder. A sample
    set's hashes are those of the networks that drew it: others that name these networks do not need the set.
    """
    if product.kind == "samples":
        return []
    weights, encoder = (product.hashes.get(name) for name in ("weights_sha256", "encoder_sha256"))
    others = [run for kind in KINDS for run in readable_runs(root, kind) if run.path != product.path]
    same = [
        p for p in (*kept, *(p for run in others for p in run.products)) if p.hashes.get("encoder_sha256") == encoder
    ]
    needed = {sha256 for sha256 in (weights, None if same else encoder) if sha256}
    return [f"{run.kind}/{run.name}" for run in others if needed & set(_texts(run.inputs))]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def _earlier(product: RunFolder) -> Removed:
    after = "" if product.step is None else f" after {counted(product.step, 'steps')}"
    return Removed(product.reference, f"earlier {product.kind}{after}", product.product_path.stat().st_size)


def _bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() or path.is_symlink())


def _remove(target: RunFolder | Path) -> None:
    if isinstance(target, Path):
        target.unlink(missing_ok=True)
    elif target.is_earlier:
        _remove_product(target)
    else:
        _remove_run(target)


def _remove_product(product: RunFolder) -> None:
    """Take an earlier product out of the record of its run, then delete its file."""
    run = open_run(product.path)
    run.earlier = [entry for entry in run.earlier if entry["product"] != product.product]
    with disk_errors(run.path):
        run.save()
        product.product_path.unlink(missing_ok=True)


def _remove_run(run: RunFolder) -> None:
    """Delete the run's folder; its record goes first, so that what a kill leaves is not a run any more."""
    with disk_errors(run.path):
        (run.path / "run.json").unlink(missing_ok=True)
        shutil.rmtree(run.path)
