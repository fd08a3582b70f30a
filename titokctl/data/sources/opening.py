"""Recognising what a source is made of, from its paths alone."""

from collections.abc import Sequence
from pathlib import Path

from titokctl.data.sources.folder import KIND as FOLDER
from titokctl.data.sources.folder import open_folder, recognises
from titokctl.data.sources.shards import KIND as SHARDS
from titokctl.data.sources.shards import expand, open_shards, shards_in
from titokctl.data.sources.source import Source
from titokctl.errors import UsageError, UserError

KINDS = (FOLDER, SHARDS)
_TRAIN = "train"


def open_source(paths: Sequence[Path | str], kind: str | None = None, accept_cut: bool = False) -> Source:
    """The source at `paths`: a folder of images or of class folders, a folder of tar shards, shards, or patterns.

    Where a folder holds `train/` and no images or shards of its own, `train/` is read. `kind` settles what can't be
    told from the files ("folder", "shards"); `accept_cut` takes the whole members of shards that were cut.

    Raises:
        UserError: something is missing, empty, or not a source.
    """
    if kind not in (None, *KINDS):
        raise UsageError(f"there is no kind of source named {kind!r}", f"one of: {', '.join(KINDS)}")
    given = [p for path in paths for p in _expanded(path)]
    if not given:
        raise UsageError("no source is named", "name a folder of images, or shards")
    missing = [p for p in given if not p.exists()]
    if missing:
        more = f" (and {len(missing) - 1:,} more)" if len(missing) > 1 else ""
        raise UserError(f"no such file or folder: {missing[0]}{more}")
    if len(given) == 1 and given[0].is_dir():
        return _open_one_folder(given[0], kind, accept_cut)
    shards = [shard for path in given for shard in (shards_in(path) if path.is_dir() else [path])]
    wrong = [p for p in shards if p.suffix != ".tar"]
    if kind == FOLDER or wrong or not shards:
        what = wrong[0] if wrong else given[0]
        raise UserError(f"{what} is no tar shard", "name one folder of images, or any number of .tar files")
    return open_shards(shards, accept_cut)


def _open_one_folder(path: Path, kind: str | None, accept_cut: bool) -> Source:
    path = _train_folder(path)
    shards = shards_in(path)
    if shards and kind is None and recognises(path):
        raise UserError(f"{path} holds both tar shards and images", "say which with --source shards or --source folder")
    if kind == SHARDS or (shards and kind is None):
        if not shards:
            raise UserError(f"no .tar shards in {path}")
        return open_shards(shards, accept_cut)
    if not any(path.iterdir()):
        raise UserError(f"the folder {path} is empty", "name a folder of images, or of tar shards")
    return open_folder(path)


def _train_folder(path: Path) -> Path:
    """`path/train` where the images or shards lie there; `path` otherwise."""
    inside = path / _TRAIN
    if not inside.is_dir() or shards_in(path):
        return path
    splits = {_TRAIN, "val", "valid", "validation", "test", "heldout"}
    others = [p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith(".") and p.name not in splits]
    return path if others else inside


def _expanded(path: Path | str) -> list[Path]:
    as_path = Path(path)
    return expand(str(path)) if "{" in str(path) and not as_path.exists() else [as_path]
