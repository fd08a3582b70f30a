"""Folders of image files: a folder per class, or one flat folder without labels.

Classes are the sub-folders, also those without an image, so that no label moves when one is emptied; images lie in them
at any depth. A list of labels beside the images (`label_lists`) takes precedence. Other files are counted.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from titokctl.data.sources.choices import NO_CHOICES, Choices
from titokctl.data.sources.class_folders import check_not_chunks, class_order, in_words
from titokctl.data.sources.folder_listing import Listing, list_files, sub_folders, suffix_of, text_of
from titokctl.data.sources.label_lists import FILES, MAX_BYTES, LabelList, find_list, numbered
from titokctl.data.sources.source import (
    Sample,
    SeekableSource,
    description_of,
    passed_over_in_words,
    units_of,
    with_labelling,
)
from titokctl.errors import UserError
from titokctl.formats.file_kind import IMAGE_SUFFIXES
from titokctl.formats.local_file import FileState, Identity, read_file
from titokctl.formats.shard_scan import MAX_IMAGE_BYTES
from titokctl.readable import counted

KIND = "folder"


@dataclass
class FolderSource(SeekableSource):
    """Image files below `root`; sample i is `names[i]`, with label and state at the same index."""

    root: Path = field(default_factory=Path)
    names: list[str] = field(default_factory=list)
    file_keys: list[str] = field(default_factory=list)
    file_labels: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    states: list[FileState] = field(default_factory=list)

    def read_many(self, positions: Sequence[int] | np.ndarray) -> list[Sample]:
        return [self._read(int(p)) for p in positions]

    def labels(self) -> np.ndarray:
        return self.file_labels.copy()

    def keys(self) -> list[str]:
        return list(self.file_keys)

    def sizes(self) -> np.ndarray:
        return np.array([state.size for state in self.states], np.int64)

    def _read(self, position: int) -> Sample:
        if not 0 <= position < len(self.names):
            raise IndexError(f"sample {position} of {len(self.names)}")
        # Of a file too large for an image, as much is read as shows it.
        data = read_file(self.root / self.names[position], MAX_IMAGE_BYTES + 1, self.states[position])
        return Sample(self.file_keys[position], int(self.file_labels[position]), data)


@dataclass(frozen=True)
class _Labelled:
    """The images in order, as positions in the listing, with their labels; class names; remarks."""

    order: list[int]
    labels: np.ndarray
    class_names: list[str]
    remarks: list[str]


def open_folder(path: Path, choices: Choices = NO_CHOICES) -> FolderSource:
    """Open a folder of images.

    Raises:
        UserError: it can't be listed, has no images, or has images beside sub-folders with images; what its folders
            mean is not clear.
    """
    listing = list_files(path)
    if not listing.names:
        raise _no_images(path, listing)
    found = _labelled(path, listing, choices)
    names = [listing.names[i] for i in found.order]
    states = [listing.states[i] for i in found.order]
    identity = Identity.of([os.path.join(path, name) for name in names], states)
    made = choices.record()
    listed = listing_digest(names, states)
    description = description_of(KIND, [str(path.resolve())], len(names), listed, identity, listing.counts)
    description = with_labelling(description, found.labels, found.class_names)
    return FolderSource(
        class_names=found.class_names,
        description=description | ({"choices": made} if made else {}),
        units=units_of([(path.name, len(names))]),
        problems=listing.problems,
        remarks=found.remarks + listing.remarks(path),
        root=path,
        names=names,
        file_keys=keys_of(names),
        file_labels=found.labels,
        states=states,
    )


def _labelled(path: Path, listing: Listing, choices: Choices) -> _Labelled:
    by_name = sorted(range(len(listing.names)), key=listing.names.__getitem__)
    listed = _label_list(path, listing, choices) if choices.use_labels else None
    if listed is not None:
        values = listed.of([listing.names[i] for i in by_name])
        labels, class_names = numbered(values, f"{path}/{listed.file}")
        return _Labelled(by_name, labels, class_names, [listed.remark(values)])
    own = sum("/" not in name for name in listing.names)
    without = np.full(len(by_name), -1, np.int32)
    if not choices.use_labels:
        return _Labelled(by_name, without, [], [f"{path} is read without labels"])
    if own == len(by_name):
        return _Labelled(by_name, without, [], [f"no labels: the images of {path} are not in class folders"])
    folders = sub_folders(path)
    if own:
        used = {name.partition("/")[0] for name in listing.names if "/" in name}
        raise UserError(
            f"{path} holds {counted(own, 'images')} itself and others in {counted(len(used), 'folders')}",
            "move the images into a class folder, name the one you mean, or read all without labels: --no-labels",
        )
    if choices.sort is None and choices.classes is None:
        check_not_chunks(path, folders, listing.names)
    order = class_order(path, folders, choices)
    label_of = {name: label for label, name in enumerate(order)}
    of_file = np.array([label_of[listing.names[i].partition("/")[0]] for i in by_name], np.int32)
    by_class = np.argsort(of_file, kind="stable")
    used_labels = set(of_file.tolist())
    empty = [name for label, name in enumerate(order) if label not in used_labels]
    return _Labelled(
        [by_name[i] for i in by_class.tolist()],
        of_file[by_class],
        [text_of(name) for name in order],
        in_words(path, order, empty, choices),
    )


def _label_list(path: Path, listing: Listing, choices: Choices) -> LabelList | None:
    """Return the labels in a list beside the images; the list is then counted as read."""
    beside = set(listing.others) & set(FILES)
    found = find_list(lambda name: read_file(path / name, MAX_BYTES) if name in beside else None, choices.label_key)
    if found is not None:
        listing.passed_over -= Counter([suffix_of(found.file)])
        listing.label_files = 1
    return found


def _no_images(path: Path, listing: Listing) -> UserError:
    hint = f"looked for .{', .'.join(IMAGE_SUFFIXES[:4])} and other images in it and in its sub-folders"
    if listing.problems:
        first = listing.problems[0]
        return UserError(f"no image in {path} can be read: {first.key} ({first.reason})", hint)
    found = f"; it holds {passed_over_in_words(listing.passed_over)}" if listing.passed_over else ""
    return UserError(f"no images in {path}{found}", hint)


def listing_digest(names: Sequence[str], states: Sequence[FileState]) -> str:
    """Return the SHA-256 of names and sizes."""
    total = hashlib.sha256()
    for name, state in zip(names, states, strict=True):
        total.update(os.fsencode(name) + b"\0" + str(state.size).encode() + b"\n")
    return total.hexdigest()


def keys_of(names: Iterable[str]) -> list[str]:
    """Remove the extensions, as in shards; of two names that differ only in it, the second keeps it."""
    keys, taken = [], set()
    for name in names:
        text = text_of(name)
        stem, dot, suffix = text.rpartition(".")
        stem = stem if dot and stem and "/" not in suffix else text
        keys.append(text if stem in taken else stem)
        taken.add(keys[-1])
    return keys
