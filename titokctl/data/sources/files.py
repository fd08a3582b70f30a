"""Image files and folders that are named one by one: `one.jpg`, `*.jpg`, several folders. They have no labels.

The order is that of the arguments; a folder's images come in the order of their names.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from titokctl.data.sources.folder import FolderSource, keys_of, listing_digest
from titokctl.data.sources.folder_listing import is_image, list_files, text_of
from titokctl.data.sources.source import Counts, Rejected, description_of, units_of, with_labelling
from titokctl.errors import UserError
from titokctl.formats.file_kind import described, head_of, hint_for, image_kind
from titokctl.formats.local_file import FileState, Identity

KIND = "files"


def is_image_file(path: Path) -> bool:
    """Return True if `path` is a file that is an image by its name or by its first bytes."""
    return path.is_file() and (is_image(path.name) or image_kind(head_of(path)) is not None)


def open_files(paths: Sequence[Path]) -> FolderSource:
    """Open image files and folders of images as one source without labels.

    Keys are the files' names without extension, below the name of a folder that was named; where two would be equal,
    they are the paths.

    Raises UserError for a file that isn't an image or is named twice, and if none is left.
    """
    names: list[str] = []
    shown: list[str] = []
    states: list[FileState] = []
    problems: list[Rejected] = []
    passed_over: Counter[str] = Counter()
    for path in paths:
        if not path.is_dir():
            _check_image(path)
            names.append(os.path.abspath(path))
            shown.append(path.name)
            states.append(FileState.of(path.stat()))
            continue
        listing = list_files(path)
        order = sorted(range(len(listing.names)), key=listing.names.__getitem__)
        names += [os.path.join(os.path.abspath(path), listing.names[i]) for i in order]
        shown += [f"{path.resolve().name}/{listing.names[i]}" for i in order]
        states += [listing.states[i] for i in order]
        problems += [replace(one, key=f"{path.name}/{one.key}") for one in listing.problems]
        passed_over.update(listing.passed_over)
    if not names:
        raise UserError(f"no images in {', '.join(map(str, paths[:3]))}", "name images, or folders of images")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{twice[0]} is named twice", "name each image, or the folder that it is in, once")
    if len(set(shown)) < len(shown):
        shown = [name.lstrip("/") for name in names]
    labels, identity = np.full(len(names), -1, np.int32), Identity.of(names, states)
    description = description_of(
        KIND,
        [text_of(str(path.resolve())) for path in paths],
        len(names),
        listing_digest(shown, states),
        identity,
        Counts(passed_over),
    )
    return FolderSource(
        class_names=[],
        description=with_labelling(description, labels, []),
        units=units_of([("files", len(names))]),
        problems=problems,
        remarks=[] if len(names) == 1 else ["no labels: files and folders that are named together have none"],
        root=Path("/"),
        names=names,
        file_keys=keys_of(shown),
        file_labels=labels,
        states=states,
    )


def _check_image(path: Path) -> None:
    if not is_image_file(path):
        head = head_of(path)
        hint = hint_for(head, path, "leave it out, or name its folder, where files that are not images are passed over")
        raise UserError(f"{path} is not an image, but {described(head)}", hint)
