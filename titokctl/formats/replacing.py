"""Replacing an output: --overwrite deletes the files of a titokctl product of the same kind, and nothing else.

Specification: a file is a product of its kind if it is a regular file that begins as files of this kind do, or is
empty. A folder of image files, of exported shards or of official weights lists its files in `.titokctl.json`: format
"titokctl/folder", format_version 1, kind, and `files`, an object of their names and sizes in bytes. A folder of shards
lists its shards in index.json (`shard_set`). A folder is replaced only if each file in it is on its list, with the
recorded size; links and special files never are.
"""

import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from titokctl.errors import UserError
from titokctl.formats.atomic import read_object, write_json
from titokctl.formats.folder_lock import contents_of
from titokctl.formats.object_store import is_store, path_of
from titokctl.readable import first_few

SEAL = ".titokctl.json"
FORMAT = "titokctl/folder"
FORMAT_VERSION = 1
# The longest name that is made of an output's name: "..<name>.settings.json.tmp-<machine>-<process>-<random>".
_ROOM_IN_NAME = 50
SHARDS_INDEX = "index.json"
_SHOWN = 3
_HEAD_BYTES = 16
_SHARDS_BESIDE = ("rejected.jsonl", SHARDS_INDEX)
_OFFSETS = ".titokctl-index"
Listing = dict[str, int | None]


@dataclass(frozen=True)
class FileKind:
    """A kind of file that commands write: its name in messages, and a test of a file's first bytes."""

    words: str
    begins: Callable[[bytes], bool]


def _with(*starts: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(starts)


CACHE = FileKind("a token cache", _with(b"\x89HDF\r\n\x1a\n"))
NPZ = FileKind("an .npz", _with(b"PK\x03\x04"))
NPY = FileKind("an .npy", _with(b"\x93NUMPY"))
PNG = FileKind("a PNG", _with(b"\x89PNG\r\n\x1a\n"))
JSON = FileKind("JSON", _with(b"{"))
PAGE = FileKind("a report", _with(b"<!doctype html>"))
RECIPE = FileKind(
    "a recipe", lambda head: b"\0" not in head and not head.startswith((b"%PDF", b"<", b"{\\rtf", b"\xff"))
)
SAFETENSORS = FileKind("a safetensors file", lambda head: head[8:9] == b"{")


def check_name(output: Path) -> None:
    """Raise UserError when no file or folder can have the name of `output`, before any work is done for it."""
    if is_store(path_of(output)):
        raise UserError(
            f"{path_of(output)} is in an object store, where only tokenize, merge and export write",
            "write to a disk, and copy the result",
        )
    if output.name in ("", ".", ".."):
        raise UserError(f"{output} can't be the name of a new file or folder", "give it a name of its own with -o")
    parent = next((p for p in output.absolute().parents if p.is_dir()), Path("/"))
    try:
        longest = os.pathconf(parent, "PC_NAME_MAX")
    except (OSError, ValueError):
        longest = 255
    size = len(os.fsencode(output.name))
    if size > longest - _ROOM_IN_NAME:
        raise UserError(
            f"the name {output.name[:40]}... has {size} bytes, more than the {longest - _ROOM_IN_NAME} that fit here",
            "choose a shorter name with -o",
        )


def check_free(output: Path, overwrite: bool, kind: FileKind | None = None) -> None:
    """Raise UserError when something exists at `output`, unless it is a product that may be replaced.

    Args:
        overwrite: a product there may be replaced.
        kind: of the file that is to be written; None for a folder.
    """
    check_name(output)
    if not _is_there(output):
        return
    if not overwrite:
        raise exists_already(output)
    _check_regular(output)
    if kind is None or output.is_dir():
        _check_folder(output, kind)
        return
    with output.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if head and not kind.begins(head):
        raise UserError(
            f"{output} is not {kind.words}, so --overwrite does not replace it",
            f"choose another -o, or delete it yourself: rm {output}",
        )


def is_of_kind(output: Path, kind: FileKind) -> bool:
    """Return True if `output` is a regular file that begins as files of this kind do."""
    if output.is_symlink() or not output.is_file():
        return False
    with output.open("rb") as file:
        return kind.begins(file.read(_HEAD_BYTES))


def exists_already(output: Path) -> UserError:
    """Return the error for an output that exists already."""
    return UserError(f"{output} exists already", "choose another -o, or replace it with --overwrite")


def _is_there(path: Path) -> bool:
    """Return True if something has this name, a dangling link too; a disk that fails is an error, not an absence."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _check_regular(output: Path) -> None:
    mode = output.lstat().st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return
    kinds = {stat.S_IFLNK: "a link", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    found = kinds.get(stat.S_IFMT(mode), "a device")
    where = f"; it points to {os.readlink(output)}" if found == "a link" else ""
    raise UserError(f"{output} is {found}, which is never replaced{where}", "name a file or folder with -o")


def _check_folder(output: Path, kind: FileKind | None) -> None:
    if kind is not None:
        raise UserError(f"{output} is a folder, but {kind.words} is a file", "choose another -o")
    if not output.is_dir():
        raise UserError(f"{output} is a file, but a folder would be written", "choose another -o")
    if not contents_of(output):
        return
    listed = listing_of(output)
    if listed is None:
        raise UserError(
            f"{output} is not empty and was not made by titokctl, so --overwrite deletes nothing in it",
            "choose another -o, or delete the folder yourself",
        )
    check_only_listed(output, listed)


def check_only_listed(folder: Path, listed: Mapping[str, int | None], passed: Sequence[str] = (".lock",)) -> None:
    """Raise UserError when `folder` holds a file that is not listed, or a listed one of another size."""
    others, changed = [], []
    for name, path in _entries(folder):
        if name not in listed:
            if name not in passed:
                others.append(name)
        elif path.is_symlink() or listed[name] not in (None, path.lstat().st_size):
            changed.append(name)
    if others or changed:
        names = others or changed
        what = "other files" if others else "files that changed since they were written"
        raise UserError(
            f"{folder} holds {what} ({first_few(names, _SHOWN)}), so it is not replaced",
            "move them away, or choose another -o",
        )


def files_to_delete(output: Path) -> list[str]:
    """Return the paths of the files that replacing `output` would delete; [] when nothing is there."""
    if output.is_dir() and not output.is_symlink():
        return [str(output / name) for name in sorted(listing_of(output) or {}) if os.path.lexists(output / name)]
    return [str(output)] if os.path.lexists(output) else []


def seal(folder: Path, kind: str) -> None:
    """Write the list of the files in `folder`, a finished product that has no list of its own."""
    files = {name: path.stat().st_size for name, path in _entries(folder) if name != SEAL}
    write_json(folder / SEAL, {"format": FORMAT, "format_version": FORMAT_VERSION, "kind": kind, "files": files})


def listing_of(folder: Path) -> Listing | None:
    """Return the names and sizes of the files of the product in `folder`; None when no product of ours is there."""
    if (folder / SEAL).is_file() and not (folder / SEAL).is_symlink():
        record = read_object(folder / SEAL)
        files = record.get("files")
        if record.get("format") == FORMAT and isinstance(files, dict):
            return _safe({**files, SEAL: None})
    record = read_object(folder / SHARDS_INDEX) if (folder / SHARDS_INDEX).is_file() else {}
    shards = record.get("shards")
    if record.get("format") == "titokctl/shards" and isinstance(shards, list):
        listed: Listing = {s["name"]: s.get("bytes") for s in shards if isinstance(s, dict) and "name" in s}
        offsets: Listing = {f"{_OFFSETS}/{name}.npz": None for name in listed}
        return _safe(listed | offsets | dict.fromkeys(_SHARDS_BESIDE))
    return None


def delete_listed(folder: Path, listed: Mapping[str, int | None]) -> None:
    """Delete the listed files in `folder`, then each folder in it that is empty, and `folder` itself if it is."""
    for name in listed:
        (folder / name).unlink(missing_ok=True)
    (folder / ".lock").unlink(missing_ok=True)
    for path, _, _ in os.walk(folder, topdown=False):
        if not os.listdir(path):
            os.rmdir(path)


def swap_in(product: Path, output: Path) -> None:
    """Rename `product`, a file or folder on the same disk, to `output`, and delete the product that was there.

    A replaced folder is moved beside the product first, so that a crash leaves the old one or the new one complete.
    Files in it that are not the product's go back into the new folder.
    """
    if not output.is_dir() or output.is_symlink():
        os.replace(product, output)
        return
    replaced = product.with_name(f"{product.name}-replaced")
    listed = listing_of(output)
    os.replace(output, replaced)
    os.replace(product, output)
    delete_listed(replaced, listed or {})
    if replaced.is_dir():
        for name, path in list(_entries(replaced)):
            if not os.path.lexists(output / name):
                (output / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, output / name)
        delete_listed(replaced, {})


def _entries(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield everything in a folder that is not a folder itself, and folders that are empty, at any depth."""
    for where, folders, files in os.walk(folder):
        here = Path(where)
        links = [name for name in folders if (here / name).is_symlink()]
        for name in sorted([*files, *links]):
            yield (here / name).relative_to(folder).as_posix(), here / name


def _safe(listed: dict[str, object]) -> Listing:
    """Return those names that stay inside the folder."""
    kept: Listing = {}
    for name, size in listed.items():
        if isinstance(name, str) and name and not name.startswith("/") and ".." not in name.split("/"):
            kept[name] = size if isinstance(size, int) else None
    return kept


def remove_tree(path: Path) -> None:
    """Delete a file or folder that was made on the way to a product, whatever is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class SetAside:
    """The finished product that new work in its folder replaces; kept in `.<name>.replaced` until that is finished.

    Args:
        folder: the folder of the product.
        owned: patterns of the product's files and folders; no other is moved or deleted.
        record: the file that makes a folder a product; it is moved last, so that it is never beside half of the files.
    """

    def __init__(self, folder: Path, owned: Sequence[str], record: str) -> None:
        self.folder = folder
        self.aside = folder.with_name(f".{folder.name}.replaced")
        self._owned, self._record = owned, record

    def is_there(self) -> bool:
        """Return True if a complete product is kept aside."""
        return (self.aside / self._record).is_file()

    def take(self) -> None:
        """Move the product aside."""
        self._move(self.folder, self.aside)

    def put_back(self) -> None:
        """Move the product back, after the new work has been cleared."""
        self._move(self.aside, self.folder)
        self.drop()

    def drop(self) -> None:
        """Delete the product that was set aside; the record first, so that no half of it seems to be a product."""
        if not self.aside.is_dir():
            return
        for path in (self.aside / self._record, *self._entries(self.aside)):
            remove_tree(path)
        delete_listed(self.aside, {})

    def _move(self, source: Path, target: Path) -> None:
        for path in (*self._entries(source), source / self._record):
            if os.path.lexists(path):
                moved = target / path.relative_to(source)
                moved.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, moved)

    def _entries(self, folder: Path) -> list[Path]:
        found = {path for pattern in self._owned for path in folder.glob(pattern)}
        return sorted(found - {folder / self._record})
