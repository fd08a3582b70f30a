"""Folders in object stores (s3, gs, az ...), through fsspec and its plug-ins.

An object is written whole, and only if there is none of its name where the store supports that condition. It is never
changed afterwards. A write whose reply got lost is found again by its contents. Faults of the store and of the network
are retried; pauses between tries grow.
"""

import contextlib
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

    def read(self, name: str) -> bytes | None:
        """Return an object, or None if there is none. Raises UserError for one that is too large."""
        path = f"{self._root}/{name}"

        def whole() -> bytes | None:
            with contextlib.suppress(FileNotFoundError):
                self._files.invalidate_cache(path)
                if self._files.info(path)["size"] > _MAX_BYTES:
                    raise UserError(f"{self.address}/{name} is larger than {_MAX_BYTES:,} bytes")
                data: bytes = self._files.cat_file(path)
                return data
            return None

        return self._tried(whole, f"read {name} in")

    def create(self, name: str, data: bytes) -> bool:
        """Write an object unless there is one of this name.

        Returns True if the object now has these contents, whoever wrote them, and False if there is another one.
        """

        def put() -> bool:
            problem: Exception | None = None
            if (there := self.read(name)) is None:
                try:
                    self._put(name, data)
                except _FINAL:
                    raise
                except Exception as error:  # refused because it exists, or a reply got lost, or nothing was written
                    problem = error
                there = self.read(name)
            if there is None:
                raise problem or OSError("an object that was written is not there")
            return there == data

        return self._tried(put, f"write {name} to")

    def delete(self, name: str) -> None:
        """Delete an object, if there is one."""

        def gone() -> None:
            with contextlib.suppress(FileNotFoundError):
                self._files.rm_file(f"{self._root}/{name}")

        self._tried(gone, f"delete {name} in")

    def _put(self, name: str, data: bytes) -> None:
        path = f"{self._root}/{name}"
        try:
            self._files.pipe_file(path, data, mode="create")
        except (TypeError, NotImplementedError, ValueError):  # a plug-in without the condition
            self._files.pipe_file(path, data)

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


def is_store(path: Any) -> bool:
    """Return True for the address of a folder in an object store."""
    return isinstance(path, StorePath)
