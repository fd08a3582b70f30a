"""Parts of a token cache: what is finished of a long job, one file per unit of its source.

Specification: beside an output `tokens.h5` the folder `tokens.h5.parts/` holds `manifest.json` and, for every finished
unit, `unit-<8 digits>.safetensors`. An output that is itself a folder keeps its parts for good (`token_folder`). The
manifest is JSON with format "titokctl/token-parts", format_version 1, num_units and `header`: the root attributes of
the cache as they will be. A part is safetensors with the datasets of the cache under their paths ("tokens" or
"latents", "views/<name>", "labels") and "keys" as (n, width) uint8, padded with zero bytes; its metadata has format
"titokctl/token-part", format_version "1", unit, first (position of the unit's first sample in the source), count
(samples of the unit), name, rejected (a JSON list of {"key", "kind", "reason"}) and sha256 over all of the above.
rows + rejected = count. Parts and manifest are written atomically, so what is there is whole; it is checked all the
same before it is used. `.lock` is locked by the process that works in the folder;
processes that share no process group share the lock and claim units through files (`unit_claims`).
"""

import contextlib
import glob
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from titokctl.config.differences import flat_differences
from titokctl.errors import UserError
from titokctl.formats.atomic import (
    check_version,
    disk_errors,
    read_json,
    remove_leftovers,
    write_bytes,
    write_json,
    write_new_json,
)
from titokctl.formats.folder_lock import folder_lock
from titokctl.formats.token_header import CacheHeader
from titokctl.formats.unit_claims import FOLDER as CLAIMS

FORMAT = "titokctl/token-parts"
PART_FORMAT = "titokctl/token-part"
FORMAT_VERSION = 1
_MAX_PART_BYTES = 1 << 30
_MAX_HEADER_BYTES = 64 << 20
MANIFEST = "manifest.json"
_LINE = 160
T = TypeVar("T")


@dataclass
class TokenPart:
    """The rows of one unit.

    Args:
        unit: number of the unit in the source.
        first: position of its first sample in the source.
        count: samples in the unit; rows + rejected.
        name: what the unit is called in messages.
        ids: (n, K) of the cache's id type; of a Gaussian tokenizer latents (n, K, C) float16.
        labels: (n,) int32.
        keys: (n,) UTF-8 bytes, numpy type S.
        views: the same of each further view.
        rejected: {"key", "kind", "reason"} of each sample without a row.
    """

    unit: int
    first: int
    count: int
    name: str
    ids: np.ndarray
    labels: np.ndarray
    keys: np.ndarray
    views: dict[str, np.ndarray] = field(default_factory=dict)
    rejected: list[dict[str, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class PartSummary:
    """What the first bytes of a part say: its rows, their longest key, and what has no row. Not checked further."""

    rows: int
    key_bytes: int
    name: str
    rejected: list[dict[str, str]]


class PartsFolder:
    """The folder of parts that belongs to one output.

    Args:
        output: the file that the parts become.
        keep: `output` is a folder, and the parts stay in it.
    """

    def __init__(self, output: Path, keep: bool = False) -> None:
        self.output, self.keep = output, keep
        self.path = output if keep else output.with_name(output.name + ".parts")

    @contextlib.contextmanager
    def locked(self, shared: bool = False) -> Iterator[None]:
        """Be the only process at work here, or one of several that claim units; ends with the process."""
        with contextlib.ExitStack() as stack:
            with disk_errors(self.path):
                stack.enter_context(folder_lock(self.path, shared))
            yield

    def begin(self, header: CacheHeader, num_units: int, afresh: bool = False, shared: bool = False) -> bool:
        """Start, or go on with what an earlier run left. Call it with the lock held.

        Returns True when going on. When the earlier run was another one, its parts are deleted if `afresh`; when the
        lock is `shared`, nothing is ever deleted.

        Raises UserError that lists the differences otherwise.
        """
        place, manifest = self.path / MANIFEST, _manifest(header, num_units)
        while not self.goes_on(header, num_units, afresh and not shared):
            if place.exists() and not shared:
                self._empty()
                write_json(place, manifest)
                return False
            # With others at work: one that has merged may have taken the folder away, another have begun it again.
            if write_new_json(place, manifest):
                return False
        if not shared:
            for left in (MANIFEST, "unit-*"):
                remove_leftovers(self.path, left)
            remove_leftovers(self.output.parent, glob.escape(self.output.name))  # of a merge that was killed
        return True

    def goes_on(self, header: CacheHeader, num_units: int, afresh: bool = False) -> bool:
        """Whether `begin` would go on with what an earlier run left. Raises as it does, and writes nothing."""
        if not (self.path / MANIFEST).exists():
            return False
        found = self.manifest()
        changes = differences(found, _manifest(header, num_units))
        if (changes or "complete" in found) and afresh:
            return False
        if changes:
            raise UserError(
                f"{self.output} was begun with other settings: {'; '.join(changes)}",
                "repeat the earlier command to go on with it, or start afresh with --overwrite",
            )
        return True

    def manifest(self) -> dict[str, Any]:
        """The manifest. Raises UserError when it is missing or not ours."""
        place = self.path / MANIFEST
        found = read_json(place)
        if not isinstance(found, dict) or found.get("format") != FORMAT or not isinstance(found.get("header"), dict):
            raise UserError(f"{place} was not written by titokctl", "choose another -o")
        check_version(found.get("format_version"), FORMAT_VERSION, place, "token parts")
        return found

    def write(self, part: TokenPart) -> None:
        """Write one part atomically. Should a power failure take its name, it is made again."""
        write_bytes(self.place(part.unit), _pack(part), is_replaceable=True)

    def finished(self) -> set[int]:
        """Numbers of the units that have a part, whatever is in it."""
        names = (path.stem.removeprefix("unit-") for path in self.path.glob("unit-*.safetensors"))
        return {int(name) for name in names if name.isdigit()}

    def read(self, unit: int) -> TokenPart | None:
        """The part of `unit`, checked; None when it is not there. Raises UserError when it is damaged."""
        return self._looked_at(unit, _unpack)

    def summary(self, unit: int) -> PartSummary | None:
        """What the header of `unit`'s part says; None when it is not there. Raises UserError when it is damaged."""
        return self._looked_at(unit, _summary)

    def _looked_at(self, unit: int, look: Callable[[BinaryIO], T]) -> T | None:
        place = self.place(unit)
        try:
            with place.open("rb") as file:
                return look(file)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(f"cannot read {place}: {error.strerror}") from error
        except (SafetensorError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
            raise UserError(f"{place} is damaged ({type(error).__name__})") from error

    def discard(self, unit: int) -> None:
        """Delete the part of `unit`, so that it is made again."""
        self.place(unit).unlink(missing_ok=True)

    def complete(self, record: dict[str, Any]) -> None:
        """Say in the manifest that every part is there: `record` is what `token_folder` specifies. Claims go."""
        write_json(self.path / MANIFEST, self.manifest() | record | {"complete": 1})
        self._remove_claims()

    def remove(self) -> None:
        """Delete the folder and everything in it that is ours."""
        self._empty()
        (self.path / ".lock").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def remove_if_left(self) -> None:
        """Delete what a process left that was killed after it had made the output; not while others are at work."""
        if not self.keep and self.path.is_dir():
            with contextlib.suppress(UserError), self.locked():
                self.remove()

    def place(self, unit: int) -> Path:
        """The file of `unit`'s part."""
        return self.path / f"unit-{unit:08d}.safetensors"

    def _empty(self) -> None:
        self._remove_claims()
        # The manifest goes last: without it, parts of unknown origin would remain.
        for pattern in ("unit-*.safetensors", ".*.tmp-*", MANIFEST):
            for path in self.path.glob(pattern):
                path.unlink(missing_ok=True)

    def _remove_claims(self) -> None:
        folder = self.path / CLAIMS
        for path in [*folder.glob("*.claim"), *folder.glob("*.owner")]:
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.rmdir()


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two manifests, "field: old -> new", without what may change between runs of one job."""
    lines = flat_differences(_decisive(before), _decisive(now))
    return [line if len(line) <= _LINE else f"{line[: _LINE - 3]}..." for line in lines]


def _decisive(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest without where the source lies and which titokctl wrote it, the header's fields on top."""
    header = manifest.get("header")
    fields = {k: v for k, v in header.items() if k not in ("created_by", "num_rejected")} if header else {}
    if not fields.get("terms"):  # as in manifests from before there were any
        fields.pop("terms", None)
    if isinstance(fields.get("source"), dict):
        fields["source"] = {k: v for k, v in fields["source"].items() if k != "paths"}
    return {k: v for k, v in manifest.items() if k in ("format", "format_version", "num_units")} | fields


def _manifest(header: CacheHeader, num_units: int) -> dict[str, Any]:
    manifest = {"format": FORMAT, "format_version": FORMAT_VERSION, "num_units": num_units}
    return manifest | {"header": json.loads(json.dumps(asdict(header)))}


def _pack(part: TokenPart) -> bytes:
    n = len(part)
    tensors = {"latents" if part.ids.ndim == 3 else "tokens": part.ids, "labels": part.labels.astype("<i4")}
    tensors |= {f"views/{name}": ids for name, ids in part.views.items()}
    tensors["keys"] = np.frombuffer(part.keys.tobytes(), np.uint8).reshape(n, part.keys.dtype.itemsize)
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    about = {name: str(getattr(part, name)) for name in ("unit", "first", "count", "name")}
    about |= {"format": PART_FORMAT, "format_version": str(FORMAT_VERSION)}
    about["rejected"] = json.dumps(part.rejected, ensure_ascii=False)
    return save(tensors, about | {"sha256": _digest(tensors, about)})


def _summary(file: BinaryIO) -> PartSummary:
    length = int.from_bytes(file.read(8), "little")
    head = json.loads(file.read(min(length, _MAX_HEADER_BYTES)))
    about, (rows, key_bytes) = head["__metadata__"], head["keys"]["shape"]
    rejected = json.loads(about["rejected"])
    if rows + len(rejected) != int(about["count"]):
        raise ValueError
    return PartSummary(rows, key_bytes, about["name"], rejected)


def _unpack(file: BinaryIO) -> TokenPart:
    if os.fstat(file.fileno()).st_size > _MAX_PART_BYTES:
        raise UserError(f"{file.name} is too large for a part of a token cache")
    data = file.read()
    about = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    tensors = load(data)
    claimed = about.pop("sha256")
    if about.get("format") != PART_FORMAT or claimed != _digest(tensors, about):
        raise UserError(f"{file.name} is damaged: its checksum does not fit")
    keys = tensors["keys"]
    part = TokenPart(
        unit=int(about["unit"]),
        first=int(about["first"]),
        count=int(about["count"]),
        name=about["name"],
        ids=tensors["latents" if "latents" in tensors else "tokens"],
        labels=tensors["labels"],
        keys=np.frombuffer(keys.tobytes(), f"S{keys.shape[1]}"),
        views={k.removeprefix("views/"): v for k, v in tensors.items() if k.startswith("views/")},
        rejected=json.loads(about["rejected"]),
    )
    if len(part) + len(part.rejected) != part.count or {len(part.labels), len(part.keys)} != {len(part)}:
        raise UserError(f"{file.name} is damaged: its rows do not add up")
    return part


def _digest(tensors: dict[str, np.ndarray], about: dict[str, str]) -> str:
    total = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype.str} {tensor.shape}\n".encode())
        total.update(memoryview(tensor.reshape(-1).view(np.uint8)))  # type: ignore[arg-type]
    return total.hexdigest()
