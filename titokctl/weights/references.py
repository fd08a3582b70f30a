"""References to weights: what RUN|FILE|NAME means, wherever the command line or Python takes it.

- a weights file, a folder in the official layout, or a checkpoint's folder: its path;
- a run: its folder, its name, or kind/name, as `titokctl runs ls` prints them. It stands for the run's product, or for
  its newest checkpoint while there is none;
- RUN@STEP: the product after so many steps, or else the checkpoint; RUN@latest: the newest checkpoint; RUN@HASH: the
  product whose weights_sha256 begins so, with at least 8 digits;
- RUN@STEP:raw: the weights of a checkpoint as they were trained; its averaged ones (`:ema`) without that;
- a released model's name, which comes before a run's.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from titokctl.errors import UserError
from titokctl.formats import checkpoint
from titokctl.formats.run_folder import KINDS, RunFolder, open_run
from titokctl.weights.known import BY_NAME

Which = Literal["ema", "raw"]
Say = Callable[[str], None]
_VERSION = re.compile(r"(?P<run>.+)@(?P<version>latest|\d{1,9}|[0-9a-f]{8,64})(:(?P<which>ema|raw))?")
_LS = "`titokctl runs ls` and `titokctl weights ls` list what there is"


@dataclass(frozen=True)
class Located:
    """Weights on disk: a file, an official folder or a checkpoint's folder; `which` of a checkpoint's weights."""

    path: Path
    which: Which = "ema"


def in_runs(given: str, root: Path, kind: str, say: Say) -> str:
    """Return `given` with the name of a run of `kind` in the runs folder `root` replaced by the path of its folder.

    Paths and released names stay as they are; a run that has a released name is reported.
    """
    name, version = split_reference(given)
    folder = root / kind / name.removeprefix(f"{kind}/")
    if Path(given).exists() or Path(name).exists() or not _is_name(name, kind) or not (folder / "run.json").is_file():
        return given
    if name in BY_NAME and not version:
        say(f"{name}: the released model; the run of that name is {kind}/{name}")
        return given
    return f"{folder}{version}"


def locate_run(reference: str) -> Located | None:
    """Return where the weights are that a run's folder, RUN@..., or a checkpoint's folder stand for; None for others.

    Raises UserError when the run has no such weights.
    """
    path = Path(reference)
    if (path / "run.json").is_file():
        return _newest(open_run(path))
    if checkpoint.is_checkpoint(path):
        return Located(path)
    matched = _VERSION.fullmatch(reference)
    if matched is None or path.exists() or not (Path(matched["run"]) / "run.json").is_file():
        return None
    return _version(open_run(Path(matched["run"])), matched["version"], matched["which"])


def run_of(path: Path) -> RunFolder:
    """Return the run that the checkpoint in `path` belongs to. Raises UserError when it was moved out of its run."""
    folder = path.absolute().parent.parent
    if not (folder / "run.json").is_file():
        raise UserError(
            f"{path} is a checkpoint outside its run, whose run.json says what network it is",
            "move it back into checkpoints/ of its run",
        )
    return open_run(folder)


def split_reference(given: str) -> tuple[str, str]:
    """Return the run's part of a reference, and the rest from "@" on."""
    matched = _VERSION.fullmatch(given)
    return (matched["run"], given[len(matched["run"]) :]) if matched else (given, "")


def _is_name(name: str, kind: str) -> bool:
    parts = Path(name).parts
    return bool(parts) and (len(parts) == 1 or (len(parts) == 2 and parts[0] == kind and kind in KINDS))


def _newest(run: RunFolder) -> Located:
    """Return the run's product, or its newest checkpoint if it has none."""
    products, steps = run.products, checkpoint.steps_in(run.path / "checkpoints")
    if products:
        return Located(products[0].product_path)
    if not steps:
        raise UserError(
            f"the run {run.path} is not finished, and has no checkpoint yet", "run its command again to resume it"
        )
    return Located(_step_folder(run, steps[-1]))


def _version(run: RunFolder, version: str, which: str | None) -> Located:
    steps, products = checkpoint.steps_in(run.path / "checkpoints"), run.products
    wanted = steps[-1] if version == "latest" and steps else int(version) if version.isdecimal() else None
    made = [
        product
        for product in products
        if (
            product.step == wanted
            if wanted is not None
            else product.hashes.get("weights_sha256", "").startswith(version)
        )
    ]
    is_of_checkpoint = which is not None or version == "latest"
    if made and not is_of_checkpoint:
        return Located(made[0].product_path)
    if wanted in steps:
        return Located(_step_folder(run, wanted), cast(Which, which or "ema"))
    if made and which == "ema":
        return Located(made[0].product_path)
    kept = [f"{run.path}@{step}" for step in steps] + [product.reference for product in products]
    what = f"the {which} weights of step {version}" if which and version != "latest" else f"@{version}"
    raise UserError(f"{run.path} does not keep {what}", f"it keeps {', '.join(kept) or 'no weights'}")


def _step_folder(run: RunFolder, step: int) -> Path:
    return run.path / "checkpoints" / f"step-{step:08d}"
