"""The index of a tar shard: the offsets of its samples, found by one pass over its headers and saved.

Specification: the index of `<name>.tar` is `.titokctl-index/<name>.tar.npz` in the same folder, or, if that can't be
written, `$XDG_CACHE_HOME/titokctl/shard-index/<start of the SHA-256 of the shard's path>-<name>.tar.npz`. It is a NumPy
.npz without pickled objects:

    header    (n,) uint8     JSON: format "titokctl/shard-index", format_version 3, the shard's `size` and `mtime_ns`,
                             `cut` ("" or how the tar ends too early), `problems` [[key, kind, text], ...], `layout`
                             ("samples", or "class-tars" for a tar of class tars), `names` {label: name} if known
    offsets   (N,) uint64    first byte of each image in the tar
    sizes     (N,) uint64    its bytes
    labels    (N,) int32     from the `cls` or `json` member, -1 without one
    keys      (m,) uint8     the UTF-8 keys, concatenated
    key_ends  (N,) uint64    the end of each key in `keys`

`shard_scan` defines samples and problems. An index whose `size` or `mtime_ns` differs from the shard's is replaced.
"""

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import TypeAdapter

from titokctl.errors import UserError
from titokctl.formats.atomic import user_cache, write_bytes
from titokctl.formats.class_tars import scan_class_tars
from titokctl.formats.shard_scan import Scan, scan
from titokctl.formats.tar_headers import BrokenTar

FORMAT = "titokctl/shard-index"
FORMAT_VERSION = 3
FOLDER = ".titokctl-index"
SAMPLES, CLASS_TARS = "samples", "class-tars"
_ARRAYS = {"offsets": "<u8", "sizes": "<u8", "labels": "<i4", "keys": "|u1", "key_ends": "<u8"}


@dataclass(frozen=True)
class _Header:
    """The header of the specification above."""

    format: Literal["titokctl/shard-index"]
    format_version: Literal[3]
    size: int
    mtime_ns: int
    cut: str
    problems: list[tuple[str, str, str]]
    layout: str
    names: dict[int, str]


_HEADER = TypeAdapter(_Header)
_FACTS = ("size", "mtime_ns", "cut", "problems", "layout", "names")


@dataclass
class ShardIndex:
    """Samples of one shard in the order of their images; see the specification above."""

    size: int
    mtime_ns: int
    cut: str
    problems: list[tuple[str, str, str]]
    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    keys: np.ndarray
    key_ends: np.ndarray
    layout: str = SAMPLES
    names: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.offsets)

    def key(self, i: int) -> str:
        """Return the key of sample i."""
        begin = int(self.key_ends[i - 1]) if i else 0
        return self.keys[begin : int(self.key_ends[i])].tobytes().decode("utf-8", "backslashreplace")

    def only(self, keep: np.ndarray) -> "ShardIndex":
        """Return the index of those samples for which `keep` (N,) bool is True."""
        arrays: dict[str, Any] = {name: getattr(self, name)[keep] for name in ("offsets", "sizes", "labels")}
        return replace(self, **arrays, **_packed(self.key(i) for i in np.flatnonzero(keep).tolist()))


def open_index(shard: Path, layout: str = SAMPLES, keep: bool = True) -> ShardIndex:
    """Return the index of `shard`: the saved one when it is current, else one from a pass over the headers.

    The pass reads labels but no images. A cut tar gives the index of its whole members; `cut` then says how it ends.

    Args:
        layout: SAMPLES, or CLASS_TARS for a tar of class tars.
        keep: save a new index for next time.

    Raises:
        UserError: the shard can't be read, or isn't a tar.
    """
    try:
        state = shard.stat()
        index = _kept(shard, state, layout)
        if index is None:
            index = _made(shard, layout)
            if keep:
                _keep(shard, index)
        return index
    except BrokenTar as error:
        what = "the file is empty" if state.st_size == 0 else str(error)
        raise UserError(f"{shard} is not a whole tar file: {what}", "compressed tars must be unpacked first") from error
    except OSError as error:
        raise UserError(f"cannot read the shard {shard}: {error.strerror}") from error


def from_scan(scan: Scan, size: int = 0, mtime_ns: int = 0, layout: str = SAMPLES) -> ShardIndex:
    """Return the index of what a pass over a shard found; `size` and `mtime_ns` are the shard's."""
    return ShardIndex(
        size=size,
        mtime_ns=mtime_ns,
        cut=scan.cut,
        problems=scan.problems,
        offsets=np.array([one.offset for one in scan.found], "<u8"),
        sizes=np.array([one.size for one in scan.found], "<u8"),
        labels=np.array([one.label for one in scan.found], "<i4"),
        **_packed(one.key for one in scan.found),
        layout=layout,
        names=scan.names,
    )


def _made(shard: Path, layout: str) -> ShardIndex:
    with shard.open("rb") as file:
        state = os.fstat(file.fileno())
        found = (scan_class_tars if layout == CLASS_TARS else scan)(file, state.st_size)
    return from_scan(found, state.st_size, state.st_mtime_ns, layout)


def _packed(keys: Iterable[str]) -> dict[str, Any]:
    encoded = [key.encode("utf-8", "backslashreplace") for key in keys]
    ends = np.cumsum([len(key) for key in encoded], dtype="<u8")
    return {"keys": np.frombuffer(b"".join(encoded), "|u1"), "key_ends": ends}


def _serialize(index: ShardIndex) -> bytes:
    header = {"format": FORMAT, "format_version": FORMAT_VERSION}
    header |= {name: getattr(index, name) for name in _FACTS}
    out = io.BytesIO()
    arrays = {name: getattr(index, name) for name in _ARRAYS}
    np.savez_compressed(out, header=np.frombuffer(json.dumps(header).encode(), "|u1"), **arrays)
    return out.getvalue()


def _deserialize(data: bytes) -> ShardIndex | None:
    """Return the index in `data`, or None if this version can't read it."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            header = _HEADER.validate_json(stored["header"].tobytes())
            arrays = {name: stored[name] for name in _ARRAYS}
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile):
        return None
    if any(array.dtype != _ARRAYS[name] or array.ndim != 1 for name, array in arrays.items()):
        return None
    index = ShardIndex(**{name: getattr(header, name) for name in _FACTS}, **arrays)
    return index if _consistent(index) else None


def _consistent(index: ShardIndex) -> bool:
    """Return True if all offsets are within the shard and all keys within their bytes: an index is untrusted input."""
    n = len(index.offsets)
    if not len(index.sizes) == len(index.labels) == len(index.key_ends) == n:
        return False
    if n == 0:
        return True
    inside = (index.offsets <= index.size) & (index.sizes <= index.size - np.minimum(index.offsets, index.size))
    ends = index.key_ends.astype(np.int64)
    return bool(inside.all() and (np.diff(ends) >= 0).all() and ends[0] >= 0 and ends[-1] == len(index.keys))


def _paths(shard: Path) -> tuple[Path, Path]:
    """Return the paths that an index may have: beside the shard, and in the user's cache."""
    path = str(shard.resolve())
    cache = user_cache() / "titokctl" / "shard-index"
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    return shard.parent / FOLDER / f"{shard.name}.npz", cache / f"{digest}-{shard.name}.npz"


def _kept(shard: Path, state: os.stat_result, layout: str) -> ShardIndex | None:
    for path in _paths(shard):
        try:
            index = _deserialize(path.read_bytes())
        except OSError:
            continue
        if index is None or index.layout != layout:
            continue
        if (index.size, index.mtime_ns) == (state.st_size, state.st_mtime_ns):
            return index
    return None


def _keep(shard: Path, index: ShardIndex) -> None:
    """Save the index in the first folder that can be written."""
    for path in _paths(shard):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, _serialize(index))
            return
        except (OSError, UserError):
            continue
