"""All files below a folder: images, and everything else counted by suffix.

A file is an image if its name or its first bytes say so. Hidden files and folders are counted, not read. Links are
followed; one that leads back to a folder above it is passed over by name, as is one that leads nowhere.
"""

import errno
import os
import stat
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from titokctl.data.sources.source import Counts, Rejected
from titokctl.errors import UserError
from titokctl.formats.file_kind import HEAD_BYTES, IMAGE_SUFFIXES, image_kind
from titokctl.formats.local_file import FileState, read_file, retried
from titokctl.formats.shard_index import FOLDER as INDEX_FOLDER
from titokctl.readable import counted, first_few

HIDDEN = "hidden"
_FOLDERS = "folders"
_OURS = (INDEX_FOLDER, ".titokctl.json", ".lock")
_NAMED = 3


@dataclass
class Listing:
    """The files below a folder.

    Attributes:
        names: of the images, relative to the folder, with slashes; in the order of folders and names.
        states: of each image.
        problems: entries with an image's name that can't be read, such as links that lead nowhere.
        others: names of the regular files that are not images.
        passed_over: their number by suffix or kind.
        label_files: number of files that were read as labels, which are not passed over.
        outside: links that lead out of the folder.
        cycles: links that lead back to a folder above them.
    """

    names: list[str] = field(default_factory=list)
    states: list[FileState] = field(default_factory=list)
    problems: list[Rejected] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)
    label_files: int = 0
    outside: list[str] = field(default_factory=list)
    cycles: list[str] = field(default_factory=list)

    @property
    def counts(self) -> Counts:
        """Numbers of files that are not images."""
        return Counts(self.passed_over, self.label_files)

    def remarks(self, root: Path) -> list[str]:
        """Return sentences about links."""
        found = []
        if self.outside:
            found.append(
                f"following {counted(len(self.outside), 'links')} out of {root}: {first_few(self.outside, _NAMED)}"
            )
        if self.cycles:
            text = f"not following {counted(len(self.cycles), 'links')} back to a folder above"
            found.append(f"{text}: {first_few(self.cycles, _NAMED)}")
        return found


def is_image(name: str) -> bool:
    """Return True for the name of an image file that is not hidden."""
    return not name.startswith(".") and name.rpartition(".")[2].lower() in IMAGE_SUFFIXES and "." in name


def suffix_of(name: str) -> str:
    """Return the suffix of a file in lower case, with its dot; "no suffix" without one."""
    stem, dot, suffix = name.rpartition("/")[2].rpartition(".")
    return f".{suffix.lower()}" if dot and stem else "no suffix"


def text_of(name: str) -> str:
    """Return the name of a file or folder as valid text, whatever its bytes are."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder, sorted by name. Raises UserError when it can't be listed."""

    def read() -> list[os.DirEntry[str]]:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)

    return retried(read, folder, "list")


def sub_folders(folder: Path) -> list[str]:
    """Return the names of the folders in `folder`, and of links to folders, without hidden ones; sorted."""
    return [entry.name for entry in entries(folder) if not entry.name.startswith(".") and entry.is_dir()]


def has_images(folder: Path, deep: bool = True) -> bool:
    """Return True if a file with an image's name is in the folder, or, if `deep`, below it."""
    return next(_image_names(folder, deep), None) is not None


def list_files(root: Path) -> Listing:
    """List everything below `root`. Raises UserError when a folder can't be listed, or a file can't be read."""
    found = Listing()
    _walk(root, "", root.resolve(), (_node(root),), found)
    return found


def count_beside(folder: Path, read: Collection[str], about: Callable[[str], bool]) -> Counter[str]:
    """Return the numbers of entries in `folder` beside the files that are read: files by suffix, folders, hidden ones.

    A folder counts as one entry, unless files that are read lie below it; then its entries are counted.

    Args:
        read: the real paths of the files.
        about: returns True for the name of a file that describes them, which is not counted.

    Raises UserError when a folder can't be listed.
    """
    above = {str(parent) for path in read for parent in Path(path).parents}
    return Counter(_beside(folder, os.path.realpath(folder), set(read), above, about))


def _beside(folder: Path, real: str, read: set[str], above: set[str], about: Callable[[str], bool]) -> Iterator[str]:
    for entry in entries(folder):
        path = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(real, entry.name)
        if entry.name in _OURS or path in read:
            continue
        if entry.name.startswith("."):
            yield HIDDEN
        elif path in above:
            yield from _beside(Path(entry.path), path, read, above, about)
        elif entry.is_dir():
            yield _FOLDERS
        elif not about(entry.name):
            yield suffix_of(entry.name)


def _image_names(folder: Path, deep: bool) -> Iterator[str]:
    def fail(error: OSError) -> None:
        retried(lambda: os.scandir(error.filename).close(), error.filename, "list")

    for path, below, files in os.walk(folder, onerror=fail, followlinks=False):
        below[:] = [name for name in below if deep and not name.startswith(".")]
        yield from (os.path.join(path, name) for name in files if is_image(name))


def _walk(folder: Path, prefix: str, root: Path, above: tuple[tuple[int, int], ...], found: Listing) -> None:
    """Add the entries of `folder`; `above` are the device and number of it and of the folders above it."""
    below = []
    for entry in entries(folder):
        name = f"{prefix}{entry.name}"
        if entry.name.startswith("."):
            _count_hidden(entry, found)
            continue
        try:
            state = retried_stat(entry)
        except FileNotFoundError:
            _add_odd(name, entry, "link", f"it is a link to {_target(entry)}, which does not exist", found)
            continue
        if entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(root):
            found.outside.append(text_of(name))
        if stat.S_ISDIR(state.st_mode):
            if (state.st_dev, state.st_ino) in above:
                found.cycles.append(text_of(name))
                found.passed_over["links to a folder above"] += 1
            else:
                below.append((entry, (state.st_dev, state.st_ino)))
        elif not stat.S_ISREG(state.st_mode):
            _add_odd(name, entry, "not-a-file", "it is a pipe, a socket or a device", found)
        else:
            _add_file(name, entry, FileState.of(state), found)
    for entry, node in below:
        _walk(Path(entry.path), f"{prefix}{entry.name}/", root, (*above, node), found)


def retried_stat(entry: os.DirEntry[str]) -> os.stat_result:
    """Return the state of what an entry, or the link that it is, leads to.

    Raises FileNotFoundError for a link that leads nowhere or to itself, and UserError for other errors.
    """

    def read() -> os.stat_result | None:
        try:
            return os.stat(entry.path)
        except OSError as error:
            if isinstance(error, FileNotFoundError | NotADirectoryError) or (
                entry.is_symlink() and error.errno == errno.ELOOP
            ):
                return None
            raise

    state = retried(read, entry.path)
    if state is None:
        raise FileNotFoundError(entry.path)
    return state


def _add_file(name: str, entry: os.DirEntry[str], state: FileState, found: Listing) -> None:
    if is_image(entry.name) or image_kind(read_file(Path(entry.path), HEAD_BYTES)) is not None:
        found.names.append(name)
        found.states.append(state)
    else:
        found.others.append(name)
        found.passed_over[suffix_of(name)] += 1


def _add_odd(name: str, entry: os.DirEntry[str], kind: str, reason: str, found: Listing) -> None:
    """Add an entry that is not a regular file: a problem if it has an image's name, else counted."""
    if is_image(entry.name):
        found.problems.append(Rejected(text_of(name), kind, reason))
    else:
        found.passed_over["links that lead nowhere" if kind == "link" else "pipes, sockets or devices"] += 1


def _count_hidden(entry: os.DirEntry[str], found: Listing) -> None:
    """Count a hidden file, or all files in a hidden folder; our own index of shards is not counted."""
    if entry.name == INDEX_FOLDER:
        return
    if not entry.is_dir(follow_symlinks=False):
        found.passed_over[HIDDEN] += 1
        return
    for _, _, files in os.walk(entry.path):
        found.passed_over[HIDDEN] += len(files)


def _node(folder: Path) -> tuple[int, int]:
    try:
        state = folder.stat()
    except OSError as error:
        raise UserError(f"cannot list {folder}: {error.strerror}") from error
    return state.st_dev, state.st_ino


def _target(entry: os.DirEntry[str]) -> str:
    try:
        return text_of(os.readlink(entry.path))
    except OSError:
        return "a file"
