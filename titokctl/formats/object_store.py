"""Folders in object stores (s3, gs, az ...), through fsspec and its plug-ins.

An object is written whole, and only if there is none of its name where the store supports that condition. It is never
changed afterwards. A write whose reply got lost is found again by its contents. Faults of the store and of the network
are retried; pauses between tries grow.
"""

import contextlib
import hashlib
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from titokctl.errors import UserError
from titokctl.formats.remote_file import PAUSES, file_system_of

T = TypeVar("T")
_SCHEMES = ("s3", "gs", "gcs", "az", "abfs", "memory")
# A Path joins slashes: "s3://bucket" becomes "s3:/bucket".
_ADDRESS = re.compile(rf"({'|'.join(_SCHEMES)}):/+(.+)")
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_MAX_BYTES = 1 << 30  # of one object


class StorePath(type(Path())):  # type: ignore[misc]
    """The address of a folder in an object store, as a path; its text is the address."""

    def __str__(self) -> str:
        found = _ADDRESS.fullmatch(super().__str__())
        return f"{found[1]}://{found[2]}" if found else super().__str__()

    def absolute(self) -> "StorePath":
        """Return this path: an address does not depend on a working folder."""
        return self

    def resolve(self, strict: bool = False) -> "StorePath":
        """Return this path: an address has no links."""
        return self


def path_of(text: Path | str) -> Path:
    """Return a path, which is a StorePath if `text` is an address in an object store."""
    return StorePath(str(text)) if _ADDRESS.fullmatch(str(text)) else Path(text)


class ObjectFolder:
    """The objects whose names begin with the address of a folder.

    Args:
        address: of the folder.
        pauses: seconds to wait before each retry; those of `remote_file` by default.
    """

    def __init__(self, address: StorePath, pauses: Sequence[float] = PAUSES) -> None:
        self.address, self._pauses = address, pauses
        self._files, self._root = file_system_of(str(address))

    def sizes(self) -> dict[str, int]:
        """Return the name and size in bytes of each object in the folder; {} if there are none."""

        def listed() -> dict[str, int]:
            self._files.invalidate_cache()
            with contextlib.suppress(FileNotFoundError):
                found = self._files.ls(self._root, detail=True)
                return {str(one["name"]).rpartition("/")[2]: int(one["size"] or 0) for one in found}
            return {}

        return self._tried(listed, "list")

    def holds(self, name: str) -> bool:
        """Return True if there is an object of this name, or one below a folder of this name."""
        return self._tried(lambda: self._is_there(name), f"look for {name} in")

    def read(self, name: str) -> bytes | None:
        """Return an object, or None if there is none. Raises UserError for one that is too large."""
        return self._tried(lambda: self._whole(name), f"read {name} in")

    def create(self, name: str, data: bytes) -> bool:
        """Write an object unless there is one of this name.

        Returns True if the object now has these contents, whoever wrote them, and False if there is another one.
        """

        def put() -> bool:
            problem: Exception | None = None
            if (there := self._whole(name)) is None:
                try:
                    self._put(name, data)
                except _FINAL:
                    raise
                except Exception as error:  # refused because it exists, or a reply got lost, or nothing was written
                    problem = error
                there = self._whole(name)
            if there is None:
                raise problem or OSError("an object that was written is not there")
            return there == data

        return self._tried(put, f"write {name} to")

    def create_file(self, name: str, local: Path) -> bool:
        """Write an object with the contents of a file unless there is one of this name; as `create`, for any size."""

        def put() -> bool:
            problem: Exception | None = None
            if not self._is_there(name):
                try:
                    self._put_file(name, local)
                except _FINAL:
                    raise
                except Exception as error:  # as in `create`
                    problem = error
            if not self._is_there(name):
                raise problem or OSError("an object that was written is not there")
            return self._sha256(name) == _sha256_of(local)

        return self._tried(put, f"write {name} to")

    def delete(self, name: str) -> None:
        """Delete an object, if there is one."""

        def gone() -> None:
            with contextlib.suppress(FileNotFoundError):
                self._files.rm_file(f"{self._root}/{name}")

        self._tried(gone, f"delete {name} in")

    def _whole(self, name: str) -> bytes | None:
        path = f"{self._root}/{name}"
        with contextlib.suppress(FileNotFoundError):
            self._files.invalidate_cache(path)
            if self._files.info(path)["size"] > _MAX_BYTES:
                raise UserError(f"{self.address}/{name} is larger than {_MAX_BYTES:,} bytes")
            data: bytes = self._files.cat_file(path)
            return data
        return None

    def _put(self, name: str, data: bytes) -> None:
        path = f"{self._root}/{name}"
        try:
            self._files.pipe_file(path, data, mode="create")
        except (TypeError, NotImplementedError, ValueError):  # a plug-in without the condition
            self._files.pipe_file(path, data)

    def _put_file(self, name: str, local: Path) -> None:
        path = f"{self._root}/{name}"
        try:
            self._files.put_file(str(local), path, mode="create")
        except (TypeError, NotImplementedError, ValueError):  # a plug-in without the condition
            self._files.put_file(str(local), path)

    def _is_there(self, name: str) -> bool:
        self._files.invalidate_cache()
        return bool(self._files.exists(f"{self._root}/{name}"))

    def _sha256(self, name: str) -> str:
        with self._files.open(f"{self._root}/{name}", "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def _tried(self, action: Callable[[], T], doing: str) -> T:
        problem: Exception | None = None
        for pause in (*self._pauses, None):
            try:
                return action()
            except UserError:
                raise
            except _FINAL as error:
                problem = error
                break
            except Exception as error:  # plug-ins raise errors of their own
                problem = error
                if pause is not None:
                    time.sleep(pause)
        text = " ".join(str(problem).split()) or type(problem).__name__
        raise UserError(
            f"cannot {doing} {self.address}: {text}", "check the address and your access; finished work is kept"
        ) from problem


def check_free_in_store(address: StorePath, overwrite: bool) -> None:
    """Raise UserError when there is an object, or a folder of objects, of this name."""
    store = ObjectFolder(StorePath(address.parent))
    if overwrite:
        raise UserError(
            f"--overwrite can't replace {address}: objects are never written again",
            "choose another address, or delete the objects first",
        )
    if store.holds(address.name):
        raise UserError(f"{address} exists already", "choose another -o")


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_store(path: Any) -> bool:
    """Return True for the address of a folder in an object store."""
    return isinstance(path, StorePath)
