"""Opening a source: its kind is recognised from the paths alone."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from titokctl.data.sources.folder import KIND as FOLDER
from titokctl.data.sources.folder import open_folder, recognises
from titokctl.data.sources.label_file import with_labels
from titokctl.data.sources.parquet import KIND as PARQUET
from titokctl.data.sources.parquet import open_parquet, parquet_in
from titokctl.data.sources.remote import KIND as REMOTE
from titokctl.data.sources.remote import expand_urls, is_url, open_remote
from titokctl.data.sources.shards import KIND as SHARDS
from titokctl.data.sources.shards import expand_pattern, open_shards, shards_in
from titokctl.data.sources.source import Source
from titokctl.errors import UsageError, UserError
from titokctl.formats.shard_index import CLASS_TARS

KINDS = (FOLDER, SHARDS, CLASS_TARS, PARQUET, REMOTE)
_TRAIN = "train"
_IMAGENET_TRAIN = "ILSVRC2012_img_train.tar"


def open_source(
    paths: Sequence[Path | str],
    kind: str | None = None,
    accept_cut: bool = False,
    labels: Path | None = None,
    label_table: Path | None = None,
    keep_index: bool = True,
) -> Source:
    """Open the images at `paths`, whatever kind of source they are.

    Accepted are a folder of images or of class folders, a folder of tar shards, paths, patterns or URLs of shards,
    parquet files, and the tar of class tars in which ImageNet is distributed. In a folder that contains only splits,
    `train/` is read; likewise ILSVRC2012_img_train.tar.

    Args:
        paths: files, folders, brace patterns or URLs.
        kind: one of KINDS, if the files leave it open.
        accept_cut: read truncated shards as far as their members are whole.
        labels: a text file with labels for images that have none (`label_file`).
        label_table: synset and ILSVRC2012_ID, for labels that are such IDs.
        keep_index: save the index of each shard for next time; a dry run passes False.

    Raises:
        UserError: a file is missing or damaged, or the paths are not a source of images.
    """
    if kind not in (None, *KINDS):
        raise UsageError(f"unknown kind of source: {kind!r}", f"one of: {', '.join(KINDS)}")
    if label_table is not None and labels is None:
        raise UsageError("a table of labels needs a file of labels", "name it with --labels")
    source = _open(paths, kind, accept_cut, keep_index)
    return source if labels is None else with_labels(source.by_position(), labels, label_table)


def reopen_source(description: dict[str, Any], keep_index: bool = True) -> Source:
    """Open the source of a recorded `Source.description`. Raises UserError when it is gone or no longer fits."""
    if description.get("kind") == "merged":
        raise UserError(
            "the cache was merged from several caches with sources of their own", "name one of those caches"
        )
    labels, table = (Path(description[name]) if name in description else None for name in ("labels", "label_table"))
    accept_cut = bool(description.get("accepted_cut_shards"))
    return open_source(description["paths"], description.get("kind"), accept_cut, labels, table, keep_index)


def _open(paths: Sequence[Path | str], kind: str | None, accept_cut: bool, keep_index: bool) -> Source:
    urls = [str(path) for path in paths if is_url(str(path))]
    if urls:
        if len(urls) < len(paths) or kind not in (None, REMOTE, SHARDS):
            raise UsageError("URLs and local paths can't be mixed", "name one or the other")
        return open_remote(expand_urls(urls), accept_cut, keep_index)
    given = check_paths(paths)
    if kind == PARQUET or (kind is None and all(p.suffix == ".parquet" for p in given)):
        return open_parquet([file for path in given for file in (parquet_in(path) if path.is_dir() else [path])])
    if len(given) == 1 and given[0].is_dir():
        return _open_one_folder(given[0], kind, accept_cut, keep_index)
    shards = [shard for path in given for shard in (shards_in(path) if path.is_dir() else [path])]
    wrong = [p for p in shards if p.suffix != ".tar"]
    if kind == FOLDER or wrong or not shards:
        what = wrong[0] if wrong else given[0]
        raise UserError(f"{what} is not a tar shard", "name one folder of images, or any number of .tar files")
    return open_shards(shards, accept_cut, keep_index)


def check_paths(paths: Sequence[Path | str]) -> list[Path]:
    """Return the local files and folders of `paths`, patterns expanded. Raises UserError when one is missing."""
    given = [p for path in paths if not is_url(str(path)) for p in _expanded(path)]
    if not paths:
        raise UsageError("no source was named", "name a folder of images, or shards")
    missing = [p for p in given if not p.exists()]
    if missing:
        more = f" (and {len(missing) - 1:,} more)" if len(missing) > 1 else ""
        raise UserError(
            f"no such file or folder: {missing[0]}{more}", "check the path; name folders, shards or patterns"
        )
    for path in given:
        try:
            str(path.absolute()).encode()  # caches and runs record where their images were, as text
        except UnicodeEncodeError as error:
            hint = "rename it, or make a link with another name"
            raise UserError(f"the name of {os.fsencode(path)!r} is not UTF-8", hint) from error
    return given


def _open_one_folder(path: Path, kind: str | None, accept_cut: bool, keep_index: bool) -> Source:
    path = _train_folder(path)
    if (path / _IMAGENET_TRAIN).is_file() and kind in (None, CLASS_TARS):
        return open_shards([path / _IMAGENET_TRAIN], accept_cut, keep_index)
    shards = shards_in(path)
    if shards and kind is None and recognises(path):
        raise UserError(
            f"{path} contains both tar shards and images", "say which with --source shards or --source folder"
        )
    if kind in (SHARDS, CLASS_TARS) or (shards and kind is None):
        if not shards:
            raise UserError(f"no .tar shards in {path}")
        return open_shards(shards, accept_cut, keep_index)
    if kind is None and parquet_in(path):
        return open_parquet(parquet_in(path))
    if not any(path.iterdir()):
        raise UserError(f"the folder {path} is empty", "name a folder of images, or of tar shards")
    return open_folder(path)


def _train_folder(path: Path) -> Path:
    """Return `path/train` if the images or shards are in it; otherwise `path`."""
    inside = path / _TRAIN
    if not inside.is_dir() or shards_in(path):
        return path
    splits = {_TRAIN, "val", "valid", "validation", "test", "heldout"}
    others = [p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith(".") and p.name not in splits]
    return path if others else inside


def _expanded(path: Path | str) -> list[Path]:
    as_path = Path(path)
    return [Path(one) for one in expand_pattern(str(path))] if "{" in str(path) and not as_path.exists() else [as_path]
