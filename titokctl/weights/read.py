"""Finding and reading weights, whatever form they have on disk."""

from pathlib import Path

from titokctl.errors import UserError
from titokctl.formats.run_folder import open_run
from titokctl.weights.store import Weights, read_own


def locate(path_or_name: str | Path) -> Path:
    """The file or folder that is meant: a path, the product of a run folder.

    Raises UserError when there is nothing.
    """
    path = Path(path_or_name)
    if (path / "run.json").is_file():
        return _product(path)
    if path.exists():
        return path
    raise UserError(f"weights not found: {path_or_name}", "`titokctl weights ls` lists known names")


def read(path: Path) -> Weights:
    """The weights at `path`, memory-mapped where the format allows it. Raises UserError when they can't be used."""
    return read_own(path)


def _product(folder: Path) -> Path:
    run = open_run(folder)
    if not run.is_finished or not run.product:
        raise UserError(f"the run {folder} is not finished", "run its command again; it goes on where it stopped")
    return run.product_path
