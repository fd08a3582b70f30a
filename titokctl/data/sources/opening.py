"""Opening a source: its kind is recognised from the paths alone."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from titokctl.context import Context
from titokctl.data.sources.arrow_files import ABOUT, saved_files
from titokctl.data.sources.arrow_files import SUFFIX as ARROW
from titokctl.data.sources.choices import NO_CHOICES, NO_SPLIT, Choices
from titokctl.data.sources.class_folders import split_of
from titokctl.data.sources.files import KIND as FILES
from titokctl.data.sources.files import is_image_file, open_files
from titokctl.data.sources.folder import KIND as FOLDER
from titokctl.data.sources.folder import open_folder
from titokctl.data.sources.folder_listing import count_beside, entries, has_images
from titokctl.data.sources.label_file import with_labels
from titokctl.data.sources.parquet import KIND as PARQUET
from titokctl.data.sources.parquet import open_parquet
from titokctl.data.sources.remote import KIND as REMOTE
from titokctl.data.sources.remote import expand_urls, is_url, open_remote
from titokctl.data.sources.shards import KIND as SHARDS
from titokctl.data.sources.shards import expand_pattern, open_shards, shards_in
from titokctl.data.sources.source import Source
from titokctl.data.sources.table_files import count_on_server, parquet_in, parquet_on_server
from titokctl.data.sources.zips import KIND as ZIP
from titokctl.data.sources.zips import open_zip
from titokctl.errors import UsageError, UserError
from titokctl.formats.file_kind import described, head_of, hint_for
from titokctl.formats.gzip_stream import is_shard
from titokctl.formats.remote_file import folder_and_name, shown
from titokctl.formats.shard_counts import is_about_shards
from titokctl.formats.shard_index import CLASS_TARS

KINDS = (FOLDER, FILES, SHARDS, CLASS_TARS, PARQUET, ZIP, REMOTE)
_OTHER_PACKED = ("*.tar.zst", "*.tar.bz2", "*.tar.xz", "*.tbz2", "*.txz", "*.tzst", "*.tar.lz4")
_IMAGENET_TRAIN = "ILSVRC2012_img_train.tar"


def open_source(
    paths: Sequence[Path | str],
    kind: str | None = None,
    accept_cut: bool = False,
    labels: Path | None = None,
    label_table: Path | None = None,
    keep_index: bool = True,
    choices: Choices = NO_CHOICES,
    context: Context | None = None,
) -> Source:
    """Open the images at `paths`, whatever kind of source they are.

    Accepted are a folder of images or of class folders, image files and several folders of images, a folder of tar
    shards, paths, patterns or URLs of shards, which may be compressed with gzip, parquet and arrow files, a zip archive
    of images, and the tar of class tars in which ImageNet is distributed. Of a folder that contains only splits,
    `train/` is read; likewise ILSVRC2012_img_train.tar.

    Args:
        paths: files, folders, brace patterns or URLs.
        kind: one of KINDS, if the files leave it open.
        accept_cut: read truncated shards as far as their members are whole.
        labels: a text file with labels for images that have none (`label_file`).
        label_table: synset and ILSVRC2012_ID, for labels that are such IDs.
        keep_index: save the index of each shard for next time, and unpack compressed ones; a dry run passes False.
        choices: of split, classes, order, members and columns, where the files leave them open.
        context: shows which shards are unpacked, and stops that after a signal; None for neither.

    Raises:
        Stopped: after a signal.
        UserError: a file is missing or damaged, or the paths are not a source of images.
    """
    if kind not in (None, *KINDS):
        raise UsageError(f"unknown kind of source: {kind!r}", f"one of: {', '.join(KINDS)}")
    if label_table is not None and labels is None:
        raise UsageError("a table of labels needs a file of labels", "name it with --labels")
    source = _open(paths, kind, accept_cut, _Options(keep_index, choices, context))
    return source if labels is None else with_labels(source.by_position(), labels, label_table)


def reopen_source(
    description: dict[str, Any],
    keep_index: bool = True,
    at: Path | str | None = None,
    context: Context | None = None,
) -> Source:
    """Open the source of a recorded `Source.description`, with the choices that were made then.

    Args:
        keep_index, context: as for `open_source`.
        at: where the images are now; None for the recorded paths.

    Raises UserError when it is gone or no longer fits.
    """
    kind = description.get("kind")
    if kind == "merged" and at is None:
        raise UserError(
            "the cache was merged from several caches with sources of their own", "name one of those caches"
        )
    labels, table = (Path(description[name]) if name in description else None for name in ("labels", "label_table"))
    accept_cut = bool(description.get("accepted_cut_shards"))
    made = description.get("choices")
    choices = Choices.of(made) if isinstance(made, dict) else NO_CHOICES
    if at is not None:
        kind = kind if kind in KINDS and kind != REMOTE and not is_url(str(at)) else None
        return open_source([at], kind, accept_cut, labels, table, keep_index, choices, context)
    # Of several splits, the recorded path names the one that was read.
    choices = replace(choices, split=NO_SPLIT)
    source = open_source(description["paths"], kind, accept_cut, labels, table, keep_index, choices, context)
    return _with_beside(source, description.get("folders", []))


@dataclass(frozen=True)
class _Options:
    keep_index: bool
    choices: Choices
    context: Context | None


def _open(paths: Sequence[Path | str], kind: str | None, accept_cut: bool, options: _Options) -> Source:
    urls = [str(path) for path in paths if is_url(str(path))]
    choices = options.choices
    if urls:
        if len(urls) < len(paths) or kind not in (None, REMOTE, SHARDS, PARQUET):
            raise UsageError("URLs and local paths can't be mixed", "name one or the other")
        return _open_urls(urls, kind, accept_cut, options)
    given = check_paths(paths)
    if kind == PARQUET or (kind is None and all(p.suffix in (".parquet", ARROW) for p in given)):
        files = [file for path in given for file in (_tables_in(path, choices.split) if path.is_dir() else [path])]
        return _with_beside(open_parquet(files, choices), [path for path in given if path.is_dir()])
    if len(given) == 1 and (kind == ZIP or (kind is None and given[0].suffix == ".zip")) and given[0].is_file():
        return open_zip(given[0], choices)
    if kind == FILES or (kind is None and _are_named_one_by_one(given)):
        return open_files(given)
    if len(given) == 1 and given[0].is_dir():
        return _open_one_folder(given[0], kind, accept_cut, options)
    shards = [shard for path in given for shard in (shards_in(path) if path.is_dir() else [path])]
    wrong = [p for p in shards if not is_shard(p)]
    if kind == FOLDER or wrong or not shards:
        raise _no_shard(wrong[0] if wrong else given[0])
    source = _shards(shards, accept_cut, options)
    return _with_beside(source, [path for path in given if path.is_dir()])


def _open_urls(urls: list[str], kind: str | None, accept_cut: bool, options: _Options) -> Source:
    whole = [url for url in urls if shown(url).endswith((ARROW, ".zip"))]
    if whole:
        name = folder_and_name(whole[0])[1]
        raise UserError(
            f"{shown(whole[0])} can't be read from a server: only shards and parquet files can",
            f"download it first, then name {name}",
        )
    named = [parquet_on_server(url, options.choices.split) if kind in (None, PARQUET) else [] for url in urls]
    if any(named) or kind == PARQUET:
        if not all(named):
            other = shown(urls[named.index([])])
            raise UserError(f"{other} is not a parquet file", "name parquet files only, or shards only")
        source = open_parquet([table for tables in named for table in tables], options.choices)
        return _with_beside(source, [shown(url) for url in urls if shown(url).endswith("/")])
    return open_remote(expand_urls(urls), accept_cut, options.keep_index, options.choices)


def _are_named_one_by_one(given: Sequence[Path]) -> bool:
    """Return True if the paths are image files, with folders or without, or several folders of images."""
    if any(not path.is_dir() for path in given):
        return any(is_image_file(path) for path in given)
    return len(given) > 1 and not any(shards_in(path) or _tables_in(path, None) for path in given)


def _no_shard(path: Path) -> UserError:
    """Return the error that a file or folder is not a shard, which says what it is instead."""
    hint = "name one folder of images, or any number of .tar files"
    if path.is_dir():
        return UserError(f"no tar shards in {path}", hint)
    head = head_of(path)
    if head and head[257:262] == b"ustar":
        return UserError(f"{path} is a tar whose name does not end with .tar", f"rename it: mv {path} {path}.tar")
    return UserError(f"{path} is not a tar shard, but {described(head)}", hint_for(head, path, hint))


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


def _open_one_folder(path: Path, kind: str | None, accept_cut: bool, options: _Options) -> Source:
    choices = options.choices
    remarks: list[str] = []
    shards = shards_in(path)
    files = _tables_in(path, choices.split) if kind is None and not shards else []
    if not shards and not files:
        path, remarks = split_of(path, choices)
        files = _tables_in(path, None) if kind is None and remarks else []
    if (path / _IMAGENET_TRAIN).is_file() and kind in (None, CLASS_TARS):
        return _with_beside(_shards([path / _IMAGENET_TRAIN], accept_cut, options), [path])
    shards = shards_in(path)
    if shards and kind is None and has_images(path):
        raise UserError(
            f"{path} contains both tar shards and images", "say which with --source shards or --source folder"
        )
    if kind in (SHARDS, CLASS_TARS) or (shards and kind is None):
        if not shards:
            raise UserError(f"no .tar shards in {path}")
        source: Source = _with_beside(_shards(shards, accept_cut, options), [path])
    elif files:
        source = _with_beside(open_parquet(files, choices), [path])
        remarks = [f"reading {len(files):,} {files[0].suffix[1:]} files, the first is {files[0]}"]
    else:
        if not entries(path):
            raise UserError(f"the folder {path} is empty", "name a folder of images, or of tar shards")
        packed = next((p for pattern in _OTHER_PACKED for p in sorted(path.glob(pattern))), None)
        if packed is not None and not has_images(path):
            raise _no_shard(packed)
        source = open_folder(path, choices)
    source.remarks = remarks + source.remarks
    return source


def _shards(paths: Sequence[Path], accept_cut: bool, options: _Options) -> Source:
    return open_shards(paths, accept_cut, options.keep_index, options.choices, options.context)


def _tables_in(path: Path, split: str | None) -> list[Path]:
    """Return the files of a saved data set, or the parquet files, in a folder."""
    return saved_files(path) or parquet_in(path, split)


def _with_beside(source: Source, folders: Sequence[Path | str]) -> Source:
    """Count what lies in `folders` beside the shards or tables that are read from them, as passed over.

    Files with counts of shards, and lists of the files of a saved data set, are not counted.

    Args:
        folders: paths, or addresses as text. They are recorded, so that a source that is opened again counts them, too.
    """
    if not folders:
        return source
    read, beside = source.description["paths"], Counter[str]()
    named = [str(folder) if is_url(str(folder)) else str(Path(folder).resolve()) for folder in folders]
    for folder in named:
        beside += count_on_server(folder, read) if is_url(folder) else count_beside(Path(folder), read, _is_about)
    total = Counter(source.passed_over) + beside
    source.description |= {"passed_over": dict(sorted(total.items())), "folders": named, "beside": dict(beside)}
    return source


def _is_about(name: str) -> bool:
    return name in ABOUT or is_about_shards(name)


def _expanded(path: Path | str) -> list[Path]:
    as_path = Path(path)
    return [Path(one) for one in expand_pattern(str(path))] if "{" in str(path) and not as_path.exists() else [as_path]
