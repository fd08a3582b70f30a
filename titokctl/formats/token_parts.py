"""Parts of a token cache: the finished units of a long job, one file per unit of its source; and their merge.

Specification: beside an output `tokens.h5` the folder `tokens.h5.parts/` holds `manifest.json` and, for every finished
unit, `unit-<8 digits>.safetensors`. An output that is itself a folder keeps its parts for good (`token_folder`). The
manifest is JSON with format "titokctl/token-parts", format_version 1, num_units and `header`: the root attributes of
the cache as they will be. A part is safetensors with the datasets of the cache under their paths ("tokens" or
"latents", "views/<name>", "labels") and "keys" as (n, width) uint8, padded with zero bytes; its metadata has format
"titokctl/token-part", format_version "1", unit, first (position of the unit's first sample in the source, or -1 where
its writer doesn't know it), count (samples of the unit), name, rejected (a JSON list of {"key", "kind", "reason"}),
state (the version of the unit's file on a server, or ""), counts (JSON: passed_over {kind: members}, label_files) and
sha256 over all of the above.
rows + rejected = count. Parts and manifest are written atomically, so a file that exists is whole; it is checked
before it is used all the same. The process that works in the folder holds the lock `.lock`. Jobs that divide the units
by arithmetic (--part) share it; the one that merges also holds the lock `.merge.lock`.
"""

import contextlib
import glob
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, BinaryIO, TypeVar

import numpy as np
from pydantic import Field, TypeAdapter
from safetensors import SafetensorError
from safetensors.numpy import load, save

from titokctl.errors import UserError
from titokctl.formats.atomic import check_version, read_json, remove_leftovers, write_bytes, write_json
from titokctl.formats.folder_lock import folder_lock
from titokctl.formats.replacing import SetAside, files_to_delete
from titokctl.formats.token_cache_writer import TokenCacheWriter
from titokctl.formats.token_header import CacheHeader, checked
from titokctl.formats.token_tally import PartSummary, Tally
from titokctl.formats.unfinished import Unfinished, changes

FORMAT = "titokctl/token-parts"
PART_FORMAT = "titokctl/token-part"
FORMAT_VERSION, FINISHED_VERSION = 1, 2
_MAX_PART_BYTES = 1 << 30
_MAX_HEADER_BYTES = 64 << 20
MANIFEST, MERGE_LOCK = "manifest.json", ".merge.lock"
# Fields of a source's description that say the same as its fingerprint, or nothing about its images.
_NOT_DECISIVE = (
    "paths", "folders", "beside", "passed_over", "label_files", "listing", "labelling", "contents", "contents_whole",
    "choices",
)  # fmt: skip
_ROWS_AT_ONCE = 16_384
T = TypeVar("T")
_Count = Annotated[int, Field(strict=True, ge=0)]


@dataclass(frozen=True)
class Manifest:
    """The manifest of a folder of parts. The fields from `complete` on are those of a finished one (`token_folder`)."""

    num_units: _Count
    header: dict[str, Any]
    complete: int = 0
    rows: list[_Count] = field(default_factory=list)
    num_rejected: _Count | None = None
    sha256: str = ""
    checksum: str = ""
    format_version: int = 1


_MANIFEST = TypeAdapter(Manifest)


@dataclass
class TokenPart:
    """The rows of one unit.

    Args:
        unit: number of the unit in the source.
        first: position of its first sample in the source; -1 when a pipeline does not know it.
        count: samples in the unit; rows + rejected.
        name: the unit's name in messages.
        ids: (n, K) of the cache's id type; of a Gaussian tokenizer latents (n, K, C) float16.
        labels: (n,) int32.
        keys: (n,) UTF-8 bytes, numpy type S.
        views: like `ids`, for each further view.
        rejected: {"key", "kind", "reason"} of each sample without a row.
        state: the version of the unit's file on a server; "" if the source as a whole is compared.
        passed_over: members that are not images, by kind, if the source as a whole does not know them.
        label_files: members that were read as labels, likewise.
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
    state: str = ""
    passed_over: dict[str, int] = field(default_factory=dict)
    label_files: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def sha256(self) -> str:
        """The checksum of all contents, which the part's file records."""
        return _digest(*_contents(self))


class _Damaged(Exception):
    """The contents of a part contradict each other."""


class PartsFolder:
    """The folder of parts that belongs to one output.

    Args:
        output: the file that the parts become.
        keep: `output` is a folder, and the parts stay in it.
    """

    def __init__(self, output: Path, keep: bool = False) -> None:
        self.output, self.keep = output, keep
        self.path = output if keep else output.with_name(output.name + ".parts")
        # Users may have put files of their own into a folder that is kept.
        owned = ("unit-*.safetensors", ".*.tmp-*", MERGE_LOCK)
        self._work = Unfinished(output, self.path, MANIFEST, lambda found: decisive(self._checked(found)), owned=owned)
        self._before = SetAside(output, owned[:1], MANIFEST)

    def locked(self, shared: bool = False) -> contextlib.AbstractContextManager[None]:
        """Be the only process at work here, or one of several jobs that divide the units; as `Unfinished.locked`."""
        return self._work.locked(shared)

    @contextlib.contextmanager
    def merging(self) -> Iterator[bool]:
        """Be the only job that merges. Yields False when another one does."""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(folder_lock(self.path, name=MERGE_LOCK))
            except UserError:
                yield False
                return
            stack.callback((self.path / MERGE_LOCK).unlink, missing_ok=True)
            yield True

    def begin(self, header: CacheHeader, num_units: int, overwrite: bool = False, shared: bool = False) -> bool:
        """Begin, or resume what an earlier run left; call it with the lock held. Returns True when resuming.

        If `overwrite`, parts with other settings are deleted, and a finished folder is set aside until the new one is
        complete; but never while the lock is shared.

        Raises UserError, which lists the differences, when the parts were begun with other settings.
        """
        manifest = manifest_of(header, num_units)
        if overwrite and self.is_complete():
            self._before.drop()
            self._before.take()
        resumed = self._work.begin(decisive(manifest), overwrite, shared=shared, record=record_of(manifest))
        if resumed and not shared:
            for left in (MANIFEST, "unit-*"):
                remove_leftovers(self.path, left)
            remove_leftovers(self.output.parent, glob.escape(self.output.name))  # of a merge that was killed
        return resumed

    def resumes(self, header: CacheHeader, num_units: int, overwrite: bool = False) -> bool:
        """Return True if `begin` would resume; raises as it does, and writes nothing."""
        if overwrite and self.is_complete():
            return False
        return self._work.resumes(decisive(manifest_of(header, num_units)), overwrite)

    def differences(self, header: CacheHeader, now: CacheHeader) -> list[str]:
        """Return how the settings of two caches differ, as lines "field: old -> new"."""
        return changes(decisive(manifest_of(header, 0), finished=True), decisive(manifest_of(now, 0), finished=True))

    def manifest(self) -> Manifest:
        """Return the manifest. Raises UserError when it is missing, damaged, or wasn't written by titokctl."""
        return self._checked(read_json(self._work.record))

    def files_to_delete(self) -> list[str]:
        """Return the paths of the existing output's files that the new output replaces."""
        if not self.keep:
            return files_to_delete(self.output)
        return [str(path) for path in sorted(self.output.glob("unit-*.safetensors"))] if self.is_complete() else []

    def is_begun(self) -> bool:
        """Return True if there is a manifest, whatever it says."""
        return self._work.record.is_file()

    def is_complete(self) -> bool:
        """Return True if the folder is a finished token cache, whose parts stay. Raises as `manifest`."""
        return self.is_begun() and bool(self.manifest().complete)

    def write(self, part: TokenPart) -> None:
        """Write one part atomically. Should a power failure take its name, it is made again."""
        write_bytes(self.file(part.unit), pack(part), is_replaceable=True)

    def finished(self) -> set[int]:
        """Return the numbers of the units that have a part, whatever is in it."""
        names = (path.stem.removeprefix("unit-") for path in self.path.glob("unit-*.safetensors"))
        return {int(name) for name in names if name.isdigit()}

    def read(self, unit: int) -> TokenPart | None:
        """Return the part of `unit`, checked; None when there is none. Raises UserError when it is damaged."""
        return self._read(unit, _unpack)

    def summary(self, unit: int) -> PartSummary | None:
        """Return what the header of `unit`'s part says; None without a part. Raises as `read`."""
        return self._read(unit, _summary)

    def _read(self, unit: int, read: Callable[[BinaryIO], T]) -> T | None:
        path = self.file(unit)
        try:
            with self._opened(unit) as file:
                return read(file)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        except _Damaged as error:
            raise UserError(f"{path} is damaged: {error}") from error
        except (SafetensorError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
            raise UserError(f"{path} is damaged ({type(error).__name__})") from error

    def _opened(self, unit: int) -> BinaryIO:
        return self.file(unit).open("rb")

    def num_bytes(self) -> int:
        """Return the size of all files in bytes."""
        return sum(path.stat().st_size for path in self.path.iterdir())

    def discard(self, unit: int) -> None:
        """Delete the part of `unit`, so that it is made again."""
        self.file(unit).unlink(missing_ok=True)

    def complete(self, record: dict[str, Any]) -> None:
        """Add `record`, which `token_folder` specifies, and `complete` to the manifest."""
        whole = read_json(self._work.record) | record | {"complete": 1, "format_version": FINISHED_VERSION}
        write_json(self._work.record, whole | {"checksum": manifest_checksum(whole)})
        self._before.drop()

    def remove(self) -> None:
        """Delete the parts, and the folder unless it holds other files."""
        self._work.remove()

    def remove_if_idle(self) -> None:
        """Delete the parts of a finished file, unless other jobs still work on them. Kept parts stay."""
        if not self.keep:
            self._work.remove_if_idle()

    def file(self, unit: int) -> Path:
        """Return the path of `unit`'s part."""
        return self.path / f"unit-{unit:08d}.safetensors"

    def _checked(self, found: Any) -> Manifest:
        path = self._work.record
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise UserError(f"{path} was not written by titokctl", "choose another -o")
        check_version(found.get("format_version"), FINISHED_VERSION, path, "token parts")
        needed = {"rows": None, "sha256": None} if found.get("complete") else {}
        manifest: Manifest = checked(_MANIFEST, needed | found, lambda name: f"{name} in {path}")
        if manifest.format_version > 1 and manifest.checksum != manifest_checksum(found):
            raise UserError(f"{path} changed since it was written: its checksum does not fit", "restore it from a copy")
        return manifest


def manifest_checksum(record: Mapping[str, Any]) -> str:
    """Return the SHA-256 of all fields of a finished folder's manifest but `checksum`."""
    covered = {name: value for name, value in record.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(covered, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def decisive(manifest: Manifest, finished: bool = False) -> dict[str, Any]:
    """Return what decides about the rows: not the source's paths or titokctl's version, nor what is only counted.

    The versions of files on a server decide about a finished cache; until then each part has that of its own file.
    """
    fields = {k: v for k, v in manifest.header.items() if k not in ("created_by", "num_rejected")}
    if not fields.get("terms"):  # absent from the oldest manifests
        fields.pop("terms", None)
    if isinstance(fields.get("source"), dict):
        aside = _NOT_DECISIVE if finished else (*_NOT_DECISIVE, "versions")
        fields["source"] = {k: v for k, v in fields["source"].items() if k not in aside}
    return {"num_units": manifest.num_units} | fields


def manifest_of(header: CacheHeader, num_units: int) -> Manifest:
    """Return the manifest of an unfinished folder."""
    return Manifest(num_units, json.loads(json.dumps(asdict(header))))


def record_of(manifest: Manifest) -> dict[str, Any]:
    """Return the JSON of an unfinished folder's manifest."""
    about = {"format": FORMAT, "format_version": FORMAT_VERSION}
    return about | {"num_units": manifest.num_units, "header": manifest.header}


def pack(part: TokenPart) -> bytes:
    """Return the contents of a part's file."""
    tensors, about = _contents(part)
    return save(tensors, about | {"sha256": _digest(tensors, about)})


def _contents(part: TokenPart) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the tensors and the metadata of a part's file, without the checksum."""
    n = len(part)
    tensors = {"latents" if part.ids.ndim == 3 else "tokens": part.ids, "labels": part.labels.astype("<i4")}
    tensors |= {f"views/{name}": ids for name, ids in part.views.items()}
    tensors["keys"] = np.frombuffer(part.keys.tobytes(), np.uint8).reshape(n, part.keys.dtype.itemsize)
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    about = {name: str(getattr(part, name)) for name in ("unit", "first", "count", "name")}
    about |= {"format": PART_FORMAT, "format_version": str(FORMAT_VERSION)}
    about["rejected"] = json.dumps(part.rejected, ensure_ascii=False)
    about |= {"state": part.state, "counts": json.dumps([part.passed_over, part.label_files])}
    return tensors, about


def _summary(file: BinaryIO) -> PartSummary:
    length = int.from_bytes(file.read(8), "little")
    head = json.loads(file.read(min(length, _MAX_HEADER_BYTES)))
    about, (rows, key_bytes) = head["__metadata__"], head["keys"]["shape"]
    rejected = json.loads(about["rejected"])
    if rows + len(rejected) != int(about["count"]):
        raise ValueError
    passed_over, label_files = _counts(about)
    return PartSummary(rows, key_bytes, about["name"], rejected, passed_over, label_files)


def _counts(about: Mapping[str, str]) -> tuple[dict[str, int], int]:
    """Return the members passed over and those read as labels; the first parts did not record them."""
    passed_over, label_files = json.loads(about.get("counts", "[{}, 0]"))
    return {str(kind): int(count) for kind, count in passed_over.items()}, int(label_files)


def _unpack(file: BinaryIO) -> TokenPart:
    data = file.read(_MAX_PART_BYTES + 1)
    if len(data) > _MAX_PART_BYTES:
        raise _Damaged("it is too large for a part")
    about = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    tensors = load(data)
    claimed = about.pop("sha256")
    if about.get("format") != PART_FORMAT or claimed != _digest(tensors, about):
        raise _Damaged("its checksum does not fit")
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
        state=about.get("state", ""),
        passed_over=_counts(about)[0],
        label_files=_counts(about)[1],
    )
    if len(part) + len(part.rejected) != part.count or {len(part.labels), len(part.keys)} != {len(part)}:
        raise _Damaged("its rows do not add up")
    return part


def _digest(tensors: dict[str, np.ndarray], about: dict[str, str]) -> str:
    total = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype.str} {tensor.shape}\n".encode())
        total.update(memoryview(tensor.reshape(-1).view(np.uint8)))  # type: ignore[arg-type]
    return total.hexdigest()


def merge(
    folder: PartsFolder,
    header: CacheHeader,
    num_units: int,
    tally: Tally,
    advance: Callable[[int], None],
    compress: bool = False,
) -> None:
    """Write the output of `folder` from all its parts.

    Args:
        folder: holds a part for each of `num_units` units.
        header: of the output; the number of rejected images is filled in.
        tally: the totals of these parts.
        advance: called with the number of rows written since.
        compress: as `TokenCacheWriter`.

    Raises UserError when a part is missing or damaged; the output is then not modified.
    """
    header = replace(header, num_rejected=tally.rejected)
    size = {"num_rows": tally.rows, "key_bytes": tally.key_bytes}
    with TokenCacheWriter(folder.output, header, **size, compress=compress) as writer:
        for parts in _blocks(all_parts(folder, num_units)):
            views = {name: np.concatenate([part.views[name] for part in parts]) for name in header.views}
            ids, labels, keys = (
                np.concatenate([getattr(p, name) for p in parts]) for name in ("ids", "labels", "keys")
            )
            writer.append(ids, labels, keys, views)
            advance(len(ids))


def _blocks(parts: Iterable[TokenPart]) -> Iterator[list[TokenPart]]:
    """Yield several parts at once, because every write to HDF5 is slow, however small."""
    block: list[TokenPart] = []
    for part in parts:
        block.append(part)
        if sum(map(len, block)) >= _ROWS_AT_ONCE:
            yield block
            block = []
    if block:
        yield block


def all_parts(folder: PartsFolder, num_units: int) -> Iterator[TokenPart]:
    """Yield every part in the order of the source, checked.

    Raises UserError when a part is missing or damaged; a damaged one is deleted, so that it is made again.
    """
    return _of_all(folder, num_units, folder.read)


def summaries(folder: PartsFolder, num_units: int) -> Iterator[PartSummary]:
    """Yield the summary of every part in the order of the source. Raises UserError as `all_parts` does."""
    return _of_all(folder, num_units, folder.summary)


def _of_all(folder: PartsFolder, num_units: int, look: Callable[[int], T | None]) -> Iterator[T]:
    for unit in range(num_units):
        try:
            found = look(unit)
        except UserError as error:
            folder.discard(unit)
            raise UserError(f"{error.message}; it was deleted", "run the same command again to make it") from error
        if found is None:
            raise UserError(f"the part of unit {unit} is missing from {folder.path}", "run the same command again")
        yield found
