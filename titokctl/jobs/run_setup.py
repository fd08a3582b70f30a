"""Where a training run lives, and whether it goes on, is done already, or must not be touched."""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from titokctl.config.recipe_files import flat_differences, to_yaml
from titokctl.errors import UserError
from titokctl.formats.atomic import write_bytes
from titokctl.formats.folder_lock import folder_lock
from titokctl.formats.run_folder import RunFolder, open_run


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
) -> Iterator[RunFolder]:
    """The locked run folder of a training command.

    Without a `name` the folder is called after the recipe and a hash of the resolved recipe and of `identity` (what
    the data are), so that the same command finds the same run, and another recipe another one.

    Raises UserError when a named run was made with other settings (they are listed), or is at work elsewhere.
    """
    settings = recipe.model_dump(mode="json")
    folder = root / kind / (name or f"{stem}-{_digest([settings, identity])}")
    with folder_lock(folder):
        if overwrite:
            _empty(folder)
        run = RunFolder(path=folder, kind=kind, settings=settings, inputs=inputs | {"identity": identity})
        if (folder / "run.json").exists():
            run = _reopened(run)
        else:
            write_bytes(folder / "recipe.yaml", to_yaml(recipe).encode())
            run.save()
        yield run


def _reopened(wanted: RunFolder) -> RunFolder:
    """The run on disk, if it is the one that is wanted."""
    found = open_run(wanted.path)
    changed = flat_differences(found.settings, wanted.settings)
    if found.inputs.get("identity") != wanted.inputs["identity"]:
        changed.append("data: not the ones this run was started with")
    if changed:
        lines = "\n".join(f"  {line}" for line in changed)
        raise UserError(
            f"{wanted.path} was started with other settings:\n{lines}",
            "run it with the settings it was started with, choose another --name, or start over with --overwrite",
        )
    return found


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def _empty(folder: Path) -> None:
    """Remove all of the folder but its lock, which is held."""
    for path in folder.iterdir():
        if path.name == ".lock":
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()
