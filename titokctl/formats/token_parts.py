"""Parts of a token cache: what is finished of a long job, one file per unit of its source.

Specification: beside an output `tokens.h5` the folder `tokens.h5.parts/` holds `manifest.json` and, for every finished
unit, `unit-<8 digits>.safetensors`. The manifest is JSON with format "titokctl/token-parts", format_version 1,
num_units and `header`: the root attributes of the cache as they will be. A part is safetensors with the datasets of
the cache under their paths ("tokens", "views/<name>", "labels") and "keys" as (n, width) uint8, padded with zero
bytes; its metadata has format "titokctl/token-part", format_version "1", unit, first (position of the unit's first
sample in the source), count (samples of the unit), name, rejected (a JSON list of {"key", "kind", "reason"}) and
sha256 over all of the above. rows + rejected = count. Parts and manifest are written atomically, so what is there is
whole; it is checked all the same before it is used. `.lock` is locked by the process that works in the folder.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from titokctl.config.recipe_files import flat_differences
from titokctl.errors import UserError
from titokctl.formats.atomic import disk_errors, read_json, remove_leftovers, write_bytes, write_json
from titokctl.formats.folder_lock import folder_lock
from titokctl.formats.token_cache import CacheHeader

FORMAT = "titokctl/token-parts"
PART_FORMAT = "titokctl/token-part"
FORMAT_VERSION = 1
_MAX_PART_BYTES = 1 << 30
_LINE = 160


@dataclass
class TokenPart:
    """The rows of one unit.

    Args:
        unit: number of the unit in the source.
        first: position of its first sample in the source.
        count: samples in the unit; rows + rejected.
        name: what the unit is called in messages.
        ids: (n, K) of the cache's id type.
        labels: (n,) int32.
        keys: (n,) UTF-8 bytes, numpy type S.
        views: ids (n, K) of each further view.
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


class PartsFolder:
    """The folder of parts that belongs to one output."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.path = output.with_name(output.name + ".parts")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only process at work here; ends with the process, however it ends."""
        with contextlib.ExitStack() as stack:
            with disk_errors(self.path):
                stack.enter_context(folder_lock(self.path))
            yield

    def begin(self, header: CacheHeader, num_units: int, afresh: bool = False) -> bool:
        """Start, or go on with what an earlier run left. Call it with the lock held.

        Returns True when going on. When the earlier run was another one, its parts are deleted if `afresh`.

        Raises UserError that lists the differences otherwise.
        """
        manifest = {"format": FORMAT, "format_version": FORMAT_VERSION, "num_units": num_units}
        manifest["header"] = json.loads(json.dumps(asdict(header)))
        place = self.path / "manifest.json"
        if not place.exists():
            write_json(place, manifest)
            return False
        found = read_json(place)
        if not isinstance(found, dict) or found.get("format") != FORMAT or not isinstance(found.get("header"), dict):
            raise UserError(f"{place} was not written by titokctl", "choose another -o")
        changes = differences(found, manifest)
        if changes and afresh:
            self._empty()
            write_json(place, manifest)
            return False
        if changes:
            raise UserError(
                f"{self.output} was begun with other settings: {'; '.join(changes)}",
                "repeat the earlier command to go on with it, or start afresh with --overwrite",
            )
        for left in ("manifest.json", "unit-*"):
            remove_leftovers(self.path, left)
        return True

    def write(self, part: TokenPart) -> None:
        """Write one part atomically."""
        write_bytes(self._place(part.unit), _pack(part))

    def read(self, unit: int) -> TokenPart | None:
        """The part of `unit`, checked; None when it is not there. Raises UserError when it is damaged."""
        place = self._place(unit)
        try:
            if place.stat().st_size > _MAX_PART_BYTES:
                raise UserError(f"{place} is too large for a part of a token cache")
            return _unpack(place, place.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(f"cannot read {place}: {error.strerror}") from error

    def remove(self) -> None:
        """Delete the folder and everything in it that is ours."""
        self._empty()
        (self.path / ".lock").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def _empty(self) -> None:
        # The manifest goes last: without it, parts of unknown origin would remain.
        for pattern in ("unit-*.safetensors", ".*.tmp-*", "manifest.json"):
            for path in self.path.glob(pattern):
                path.unlink(missing_ok=True)

    def _place(self, unit: int) -> Path:
        return self.path / f"unit-{unit:08d}.safetensors"


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two manifests, "field: old -> new", without what may change between runs of one job."""
    lines = flat_differences(_decisive(before), _decisive(now))
    return [line if len(line) <= _LINE else f"{line[: _LINE - 3]}..." for line in lines]


def _decisive(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest without where the source lies and which titokctl wrote it, the header's fields on top."""
    header = manifest.get("header")
    fields = {k: v for k, v in header.items() if k not in ("created_by", "num_rejected")} if header else {}
    if isinstance(fields.get("source"), dict):
        fields["source"] = {k: v for k, v in fields["source"].items() if k != "paths"}
    return {k: v for k, v in manifest.items() if k != "header"} | fields


def _pack(part: TokenPart) -> bytes:
    n = len(part)
    tensors = {"tokens": part.ids, "labels": part.labels.astype("<i4")}
    tensors |= {f"views/{name}": ids for name, ids in part.views.items()}
    tensors["keys"] = np.frombuffer(part.keys.tobytes(), np.uint8).reshape(n, part.keys.dtype.itemsize)
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    about = {name: str(getattr(part, name)) for name in ("unit", "first", "count", "name")}
    about |= {"format": PART_FORMAT, "format_version": str(FORMAT_VERSION)}
    about["rejected"] = json.dumps(part.rejected, ensure_ascii=False)
    return save(tensors, about | {"sha256": _digest(tensors, about)})


def _unpack(place: Path, data: bytes) -> TokenPart:
    try:
        about = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        tensors = load(data)
        claimed = about.pop("sha256")
        if about.get("format") != PART_FORMAT or claimed != _digest(tensors, about):
            raise UserError(f"{place} is damaged: its checksum does not fit")
        keys = tensors["keys"]
        part = TokenPart(
            unit=int(about["unit"]),
            first=int(about["first"]),
            count=int(about["count"]),
            name=about["name"],
            ids=tensors["tokens"],
            labels=tensors["labels"],
            keys=np.frombuffer(keys.tobytes(), f"S{keys.shape[1]}"),
            views={k.removeprefix("views/"): v for k, v in tensors.items() if k.startswith("views/")},
            rejected=json.loads(about["rejected"]),
        )
    except (SafetensorError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise UserError(f"{place} is damaged ({type(error).__name__})") from error
    if len(part) + len(part.rejected) != part.count or {len(part.labels), len(part.keys)} != {len(part)}:
        raise UserError(f"{place} is damaged: its rows do not add up")
    return part


def _digest(tensors: dict[str, np.ndarray], about: dict[str, str]) -> str:
    total = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype.str} {tensor.shape}\n".encode())
        total.update(tensor.tobytes())
    return total.hexdigest()
