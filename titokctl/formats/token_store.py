"""Parts of a token cache in an object store.

Specification: the objects below the address of the folder are those of a folder that keeps its parts (`token_parts`,
`token_folder`), but for the manifest. `begun.json` is the manifest of an unfinished folder; it is written once, when
the work begins. `manifest.json` is that of a finished folder, written once, last. So no object is ever written again,
and a copy of all objects on a disk is a token cache, too. The list of rejected images is `rejected.jsonl`. There are no
locks: two jobs at once write the same bytes.

Readers keep each part that they have read in the user's cache folder, under the checksum of the whole.
"""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from titokctl.errors import UserError
from titokctl.formats.atomic import user_cache, write_bytes
from titokctl.formats.object_store import ObjectFolder, StorePath
from titokctl.formats.token_header import CacheHeader
from titokctl.formats.token_parts import (
    FINISHED_VERSION,
    MANIFEST,
    Manifest,
    PartsFolder,
    TokenPart,
    decisive,
    manifest_checksum,
    manifest_of,
    pack,
    record_of,
)
from titokctl.formats.unfinished import begun_with_other_settings, changes

T = TypeVar("T")
BEGUN, REJECTED = "begun.json", "rejected.jsonl"


class StoredParts(PartsFolder):
    """The folder of parts at an address in an object store; it always keeps them.

    Args:
        output: the address.
        keeps_copies: keep the parts that are read on this machine's disk; for finished folders.
    """

    def __init__(self, output: StorePath, keeps_copies: bool = False) -> None:
        super().__init__(output, keep=True)
        self.store = ObjectFolder(output)
        self._copies: Path | None = None
        self._lock = threading.Lock()
        if keeps_copies and (found := self.store.read(MANIFEST)) is not None:
            key = self._checked(_json(found, output)).sha256
            self._copies = user_cache() / "titokctl" / "parts" / key[:32]

    def locked(self, shared: bool = False) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def merging(self) -> Iterator[bool]:
        yield True

    def check_free(self, overwrite: bool) -> None:
        """Raise UserError when the folder holds objects that are not ours, or is to be overwritten."""
        if overwrite:
            raise UserError(
                f"--overwrite can't replace {self.output}: objects are never written again",
                "choose another address, or delete the objects first",
            )
        if not self.is_begun() and (found := self.store.sizes()):
            raise UserError(f"{self.output} holds other objects, such as {min(found)}", "choose another -o")

    def begin(self, header: CacheHeader, num_units: int, overwrite: bool = False, shared: bool = False) -> bool:
        record = json.dumps(record_of(manifest_of(header, num_units)), ensure_ascii=False).encode()
        if self.resumes(header, num_units):
            return True
        if self.store.create(BEGUN, record):
            return False
        return self.resumes(header, num_units)  # another job began just now

    def resumes(self, header: CacheHeader, num_units: int, overwrite: bool = False) -> bool:
        if not self.is_begun():
            return False
        changed = changes(decisive(self.manifest()), decisive(manifest_of(header, num_units)))
        if changed:
            raise begun_with_other_settings(self.output, changed)
        return True

    def manifest(self) -> Manifest:
        for name in (MANIFEST, BEGUN):
            if (found := self.store.read(name)) is not None:
                return self._checked(_json(found, self.output))
        raise UserError(f"{self.output} is not a token cache", "check the address")

    def files_to_delete(self) -> list[str]:
        return []

    def is_begun(self) -> bool:
        return self.store.read(BEGUN) is not None or self.is_complete()

    def is_complete(self) -> bool:
        return self.store.read(MANIFEST) is not None

    def write(self, part: TokenPart) -> None:
        """Write one part. A damaged one, or one of another version of its images, is deleted first."""
        name, data = self.file(part.unit).name, pack(part)
        if not self.store.create(name, data):
            self.store.delete(name)
            if not self.store.create(name, data):
                raise UserError(f"another job writes other contents to {self.file(part.unit)}", "run one of them")

    def finished(self) -> set[int]:
        names = (name.removeprefix("unit-").removesuffix(".safetensors") for name in self.store.sizes())
        return {int(name) for name in names if name.isdigit()}

    def discard(self, unit: int) -> None:
        self.store.delete(self.file(unit).name)

    def complete(self, record: dict[str, Any]) -> None:
        begun = _json(self.store.read(BEGUN) or b"{}", self.output)
        whole = begun | record | {"complete": 1, "format_version": FINISHED_VERSION}
        data = json.dumps(whole | {"checksum": manifest_checksum(whole)}, ensure_ascii=False).encode()
        if not self.store.create(MANIFEST, data):
            raise UserError(f"another job finished {self.output} with other contents", "choose another address")

    def write_rejected(self, lines: bytes) -> Path:
        """Write the list of rejected images, and return its address; without any, none is written."""
        if lines and not self.store.create(REJECTED, lines):
            self.store.delete(REJECTED)
            self.store.create(REJECTED, lines)
        return self.output / REJECTED

    def remove(self) -> None:
        """Leave the parts, which are the output."""

    def remove_if_idle(self) -> None:
        """Leave the parts, which are the output."""

    def num_bytes(self) -> int:
        return sum(self.store.sizes().values())

    def _read(self, unit: int, read: Callable[[BinaryIO], T]) -> T | None:
        """As in a folder; what is damaged on this machine's disk is fetched again."""
        if self._copies is not None:
            try:
                return super()._read(unit, read)
            except UserError:
                (self._copies / self.file(unit).name).unlink(missing_ok=True)
        return super()._read(unit, read)

    def _opened(self, unit: int) -> BinaryIO:
        name = self.file(unit).name
        if self._copies is not None and (copy := self._copies / name).is_file():
            return copy.open("rb")
        data = self.store.read(name)
        if data is None:
            raise FileNotFoundError(name)
        if self._copies is not None:
            with self._lock:
                self._copies.mkdir(parents=True, exist_ok=True)
                write_bytes(self._copies / name, data, is_replaceable=True)
        return BytesIO(data)


def parts_at(output: Path, keep: bool = False, keeps_copies: bool = False) -> PartsFolder:
    """Return the folder of parts that belongs to an output on a disk or in an object store."""
    return StoredParts(output, keeps_copies) if isinstance(output, StorePath) else PartsFolder(output, keep)


def _json(data: bytes, where: Path) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"the manifest of {where} is damaged", "restore it from a copy") from error
