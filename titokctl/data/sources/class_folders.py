"""Splits and classes among the folders of a source, and the order in which classes are numbered.

Labels must not depend on a guess. Where folders can be read in two ways, the command is refused with the option that
decides; where they can't, a remark says what was taken.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from titokctl.data.sources.choices import NO_SPLIT, Choices
from titokctl.data.sources.folder_listing import has_images, sub_folders, text_of
from titokctl.errors import UsageError, UserError
from titokctl.formats.local_file import read_file
from titokctl.readable import counted, first_few

SPLITS = ("train", "val", "valid", "validation", "test", "heldout")
_TRAIN = "train"
_NAMED = 5
_MAX_BYTES = 64 << 20
# Folders and files as StyleGAN's and EDM's dataset_tool writes them: the folders are not classes.
_TOOL_FOLDER, _TOOL_FILE = re.compile(r"\d{5}"), re.compile(r"img\d{8}\.\w+")


def split_of(path: Path, choices: Choices) -> tuple[Path, list[str]]:
    """Return the folder to read, `path` or one of the splits in it, and remarks about it.

    Raises UserError if folders named as splits may as well be classes; UsageError for a split that is not there.
    """
    names = sub_folders(path)
    if choices.split == NO_SPLIT:
        return path, []
    if choices.split is not None:
        if choices.split not in names:
            raise UsageError(f"{path} has no sub-folder {choices.split}", f"its sub-folders: {_list(names) or 'none'}")
        return path / choices.split, [_reading(path, choices.split, names)]
    splits = [name for name in names if name in SPLITS]
    if not splits or has_images(path, deep=False):
        return path, []
    divided = [name for name in splits if _is_divided(path / name)]
    others = [name for name in names if name not in SPLITS and has_images(path / name)]
    if others and not divided:
        return path, []
    is_clear = _TRAIN in divided or splits == [_TRAIN]
    if others or not is_clear:
        raise UserError(
            f"the folders {_list(splits)} in {path} may be splits or classes",
            f"read one split with --split {splits[0]}, or take them as classes with --split {NO_SPLIT}",
        )
    return path / _TRAIN, [_reading(path, _TRAIN, names)]


def _is_divided(folder: Path) -> bool:
    """Return True if a folder holds shards or tables, or folders with images: then it is a split, not a class."""
    if any(
        next(folder.glob(pattern), None) is not None
        for pattern in ("*.tar", "*.tar.gz", "*.tgz", "*.parquet", "*.arrow")
    ):
        return True
    return any(has_images(folder / name) for name in sub_folders(folder))


def _reading(path: Path, split: str, names: Sequence[str]) -> str:
    others = [name for name in names if name != split]
    return f"reading the split {split} of {path}" + (f"; not read: {_list(others)}" if others else "")


def class_order(path: Path, names: Sequence[str], choices: Choices) -> list[str]:
    """Return the class folders `names` of `path` in the order of their labels.

    A list of the user's may name further classes, which have no images. Raises UserError if the list lacks a folder,
    or if all names are numbers whose order as text is another one.
    """
    if choices.classes is not None:
        return _listed(path, names, choices.classes)
    as_text, natural = sorted(names), sorted(names, key=_natural)
    if choices.sort is None and all(name.isdecimal() for name in names) and as_text != natural:
        first = next(i for i, (a, b) in enumerate(zip(as_text, natural, strict=True)) if a != b)
        raise UserError(
            f"the class folders of {path} are numbers, whose order as text is another one: class {first} would be "
            f"{as_text[first]}, not {natural[first]}",
            "--sort natural counts as numbers do; --sort name sorts as text, as torchvision does",
        )
    return natural if choices.sort == "natural" else as_text


def check_not_chunks(path: Path, folders: Sequence[str], names: Sequence[str]) -> None:
    """Raise UserError if the folders were made by dataset_tool, whose labels are in dataset.json and not in names."""
    if folders and all(map(_TOOL_FOLDER.fullmatch, folders)):
        files = (name.rpartition("/")[2] for name in names)
        if all(map(_TOOL_FILE.fullmatch, files)):
            raise UserError(
                f"the folders of {path} look like those of dataset_tool, which are not classes, and its dataset.json "
                "is missing",
                "copy dataset.json too, or read the images without labels with --no-labels",
            )


def in_words(path: Path, order: Sequence[str], empty: Sequence[str], choices: Choices) -> list[str]:
    """Return remarks about the classes that were taken."""
    how = "in the order of the list" if choices.classes else "in natural order" if choices.sort == "natural" else ""
    ends = f"{text_of(order[0])} is 0" + (f", {text_of(order[-1])} is {len(order) - 1}" if len(order) > 1 else "")
    found = [f"{counted(len(order), 'classes')} from the folders of {path}, {how or 'sorted as text'}: {ends}"]
    if empty:
        found.append(f"{counted(len(empty), 'classes')} without images, which keep their numbers: {_list(empty)}")
    return found


def read_classes(file: Path) -> list[str]:
    """Return the names of classes in a text file, one per line. Raises UserError for other files, and for doubles."""
    try:
        lines = read_file(file, _MAX_BYTES).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not text: {error.reason}", "expected a file with a name per line") from error
    order = [line.strip() for line in lines if line.strip()]
    if len(set(order)) < len(order):
        twice = next(name for i, name in enumerate(order) if name in order[:i])
        raise UserError(f"{file} lists the class {twice} twice")
    return order


def _listed(path: Path, names: Sequence[str], file: Path) -> list[str]:
    order = read_classes(file)
    missing = [name for name in names if name not in set(order)]
    if missing:
        raise UserError(f"{file} does not list the folders {_list(missing)} of {path}", "add them, one per line")
    return order


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Return a key by which numbers inside of names sort as numbers."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]


def _list(names: Sequence[str]) -> str:
    return first_few([text_of(name) for name in names], _NAMED)
