"""Folders of image files: a folder per class, or one flat folder without labels.

Class names are the sorted names of the sub-folders that contain images, at any depth. Hidden files and files of other
kinds are ignored.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from titokctl.data.images import EXTENSIONS
from titokctl.data.sources.source import Sample, SeekableSource, description_of, units_of
from titokctl.errors import UserError
from titokctl.formats.shard_scan import MAX_IMAGE_BYTES

KIND = "folder"


@dataclass
class FolderSource(SeekableSource):
    """Image files below `root`; sample i is `names[i]`, with label and size at the same index."""

    root: Path = field(default_factory=Path)
    names: list[str] = field(default_factory=list)
    file_keys: list[str] = field(default_factory=list)
    file_labels: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    file_sizes: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    def read_many(self, positions: Sequence[int] | np.ndarray) -> list[Sample]:
        return [self._read(int(p)) for p in positions]

    def labels(self) -> np.ndarray:
        return self.file_labels.copy()

    def keys(self) -> list[str]:
        return list(self.file_keys)

    def sizes(self) -> np.ndarray:
        return self.file_sizes.copy()

    def _read(self, position: int) -> Sample:
        if not 0 <= position < len(self.names):
            raise IndexError(f"sample {position} of {len(self.names)}")
        path = self.root / self.names[position]
        try:
            data = _start_of(path) if path.is_file() else b""  # a pipe or a device would never end
        except OSError:
            data = b""  # a dangling link, or no permission: decoding rejects it by name, as empty
        return Sample(self.file_keys[position], int(self.file_labels[position]), data)


def _start_of(path: Path) -> bytes:
    """Read a file, or as much of it as shows that it is too large for an image."""
    with path.open("rb") as file:
        return file.read(MAX_IMAGE_BYTES + 1)


def _size(path: Path) -> int:
    """Return the size of a file, 0 for a dangling link."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def recognises(path: Path) -> bool:
    """Return True for a folder that contains images, directly or in sub-folders."""
    return path.is_dir() and (next(_images_below(path), None) is not None)


def open_folder(path: Path) -> FolderSource:
    """Open a folder of images. Raises UserError when it has none, or has images beside sub-folders with images."""
    own = sorted(e.name for e in os.scandir(path) if is_image(e.name) and e.is_file())
    classes = {name: sorted(_relative(_images_below(path / name), path)) for name in _folders(path)}
    classes = {name: files for name, files in classes.items() if files}
    if own and classes:
        raise UserError(
            f"{path} holds {len(own):,} images itself and others in {len(classes):,} folders",
            "move the images into a class folder, or name the one you mean",
        )
    if not own and not classes:
        raise UserError(f"no images in {path}", f"looked for .{', .'.join(EXTENSIONS)} in it and in its sub-folders")
    names = own or [file for files in classes.values() for file in files]
    counts = [len(files) for files in classes.values()]
    labels = np.full(len(own), -1) if own else np.repeat(np.arange(len(counts)), counts)
    sizes = [_size(path / name) for name in names]
    return FolderSource(
        class_names=[_text(name) for name in classes],
        description=description_of(
            KIND, [str(path.resolve())], len(names), _fingerprint(zip(names, sizes, strict=True))
        ),
        units=units_of([(path.name, len(names))]),
        root=path,
        names=names,
        file_keys=_keys(names),
        file_labels=labels.astype(np.int32),
        file_sizes=np.array(sizes, np.int64),
    )


def is_image(name: str) -> bool:
    """Return True for the name of an image file that is not hidden."""
    return not name.startswith(".") and name.rpartition(".")[2].lower() in EXTENSIONS


def _fingerprint(names_and_sizes: Iterable[tuple[str, int]]) -> str:
    """Return the SHA-256 of names and sizes, in hexadecimal."""
    total = hashlib.sha256()
    for name, size in names_and_sizes:
        total.update(os.fsencode(name) + b"\0" + str(size).encode() + b"\n")
    return total.hexdigest()


def _folders(path: Path) -> list[str]:
    return sorted(e.name for e in os.scandir(path) if e.is_dir() and not e.name.startswith("."))


def _images_below(path: Path) -> Iterator[str]:
    for folder, below, files in os.walk(path):
        below[:] = sorted(name for name in below if not name.startswith("."))
        yield from (os.path.join(folder, name) for name in files if is_image(name))


def _relative(paths: Iterable[str], root: Path) -> Iterable[str]:
    start = len(os.path.join(root, ""))
    return (path[start:].replace(os.sep, "/") for path in paths)


def _text(name: str) -> str:
    """Return the name of a file or folder as valid text, whatever its bytes are."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _keys(names: list[str]) -> list[str]:
    """Remove the extensions, as in shards; of two names that differ only in it, the second keeps it."""
    keys, taken = [], set()
    for name in names:
        text = _text(name)
        stem = text.rpartition(".")[0]
        keys.append(text if stem in taken else stem)
        taken.add(keys[-1])
    return keys
