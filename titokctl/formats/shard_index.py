"""The index of a tar shard: the offsets of its samples, found by one pass over its headers and saved.

Specification: the index of `<name>.tar` is `.titokctl-index/<name>.tar.npz` in the same folder, or, if that can't be
written, `$XDG_CACHE_HOME/titokctl/shard-index/<start of the SHA-256 of the shard's path>-<name>.tar.npz`. It is a NumPy
.npz without pickled objects:

    header    (n,) uint8     JSON: format "titokctl/shard-index", format_version 4, the shard's `size` and `mtime_ns`,
                             `contents` (SHA-256 of some of its bytes, see local_file.OF_SHARD), `cut` ("" or how the
                             tar ends too early), `problems` [[key, kind, text], ...], `layout` ("samples", or
                             "class-tars" for a tar of class tars), `names` {label: name} if known, `texts` (names that
                             stand for the labels, or []), `passed_over` {kind: members}, `label_files` (members read
                             as labels)
    offsets   (N,) uint64    first byte of each image in the tar
    sizes     (N,) uint64    its bytes
    labels    (N,) int32     from the `cls` or `json` member, -1 without one
    keys      (m,) uint8     the UTF-8 keys, concatenated
    key_ends  (N,) uint64    the end of each key in `keys`

`shard_scan` defines samples and problems. An index that is damaged, or whose `size`, `mtime_ns` or `contents` differs
from the shard's, is replaced.
"""

import hashlib
import io
import json
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, cast

import numpy as np
from pydantic import Field, TypeAdapter

from titokctl.errors import UserError
from titokctl.formats.atomic import user_cache, write_bytes
from titokctl.formats.class_tars import scan_class_tars
from titokctl.formats.file_kind import HEAD_BYTES, described, head_of, hint_for, kind_of
from titokctl.formats.gzip_stream import GzipStream
from titokctl.formats.local_file import OF_SHARD, FileState, contents_of, retried
from titokctl.formats.npz_reader import NPZ_DAMAGE
from titokctl.formats.shard_scan import Keys, Scan, scan
from titokctl.formats.tar_headers import BrokenTar

FORMAT = "titokctl/shard-index"
FORMAT_VERSION = 4
FOLDER = ".titokctl-index"
_ENDLESS = 1 << 62
SAMPLES, CLASS_TARS = "samples", "class-tars"
_ARRAYS = {"offsets": "<u8", "sizes": "<u8", "labels": "<i4", "keys": "|u1", "key_ends": "<u8"}


@dataclass(frozen=True)
class _Header:
    """The header of the specification above."""

    format: Literal["titokctl/shard-index"]
    format_version: Literal[4]
    size: int
    mtime_ns: int
    contents: str
    cut: str
    problems: list[tuple[str, str, str]]
    layout: str
    names: dict[int, str]
    texts: list[str]
    passed_over: dict[str, Annotated[int, Field(ge=0)]]
    label_files: Annotated[int, Field(ge=0)]


_HEADER = TypeAdapter(_Header)
_FACTS = (
    "size", "mtime_ns", "contents", "cut", "problems", "layout", "names", "texts", "passed_over", "label_files"
)  # fmt: skip


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
    texts: list[str] = field(default_factory=list)
    passed_over: dict[str, int] = field(default_factory=dict)
    label_files: int = 0
    contents: str = ""

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def state(self) -> FileState:
        """The state of the shard that was indexed."""
        return FileState(self.size, self.mtime_ns)

    def key(self, i: int) -> str:
        """Return the key of sample i."""
        begin = int(self.key_ends[i - 1]) if i else 0
        return self.keys[begin : int(self.key_ends[i])].tobytes().decode("utf-8", "backslashreplace")

    def only(self, keep: np.ndarray) -> "ShardIndex":
        """Return the index of those samples for which `keep` (N,) bool is True."""
        arrays: dict[str, Any] = {name: getattr(self, name)[keep] for name in ("offsets", "sizes", "labels")}
        return replace(self, **arrays, **_packed(self.key(i) for i in np.flatnonzero(keep).tolist()))


def open_index(
    shard: Path, layout: str = SAMPLES, keep: bool = True, keys: Keys | None = None, named: Path | None = None
) -> ShardIndex:
    """Return the index of `shard`: the saved one when it is current, else one from a pass over the headers.

    The pass reads labels but no images. A cut tar gives the index of its whole members; `cut` then says how it ends.

    Args:
        layout: SAMPLES, or CLASS_TARS for a tar of class tars.
        keep: save a new index for next time.
        keys: which members are images and labels; such an index is never saved.
        named: the name of the shard in messages, if `shard` is a copy.

    Raises:
        UserError: the shard can't be read, or isn't a tar.
    """
    found = retried(shard.stat, shard)
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{shard} is not a regular file", "name a .tar file")
    state = FileState.of(found)
    index = _kept(shard, state, layout) if keys is None else None
    if index is None:
        try:
            index = retried(lambda: _made(shard, layout, keys), shard)
        except BrokenTar as error:
            raise not_a_tar(named or shard, error, head_of(shard)) from error
        kind = kind_of(head_of(shard)) if index.cut and not len(index) else None
        if kind is not None and kind.name != "tar":
            raise not_a_tar(named or shard, BrokenTar(index.cut, cut=True), head_of(shard))
        if keep and keys is None:
            _keep(shard, index)
    return index


def index_of_stream(file: GzipStream, layout: str = SAMPLES, keys: Keys | None = None) -> ShardIndex:
    """Return the index of a compressed shard, whose offsets are those of the plain one; it has no state.

    Raises BrokenTar when it isn't a tar, and UserError when it can't be read to its end.
    """
    opened = cast(BinaryIO, file)
    try:
        found = (
            scan_class_tars(opened, _ENDLESS) if layout == CLASS_TARS else scan(opened, _ENDLESS, keys=keys or Keys())
        )
    finally:
        file.seek(_ENDLESS)  # damage shows at the end at the latest, and explains what is wrong with the tar
    return from_scan(found, layout=layout)


def not_a_tar(shard: Path | str, error: BrokenTar, head: bytes | None = None) -> UserError:
    """Return the error that a shard is not a whole tar, which says what it is instead.

    Args:
        head: its first bytes; read from the file if None.
    """
    head = head_of(Path(shard)) if head is None else head[:HEAD_BYTES]
    found = described(head)
    what = found if found != "a tar file" and not head.startswith(bytes(8)) and head else str(error)
    what = "the file is empty" if not head else what
    return UserError(f"{shard} is not a whole tar file: {what}", hint_for(head, shard, "copy or download it again"))


def from_scan(scan: Scan, state: FileState = FileState(0, 0), layout: str = SAMPLES) -> ShardIndex:  # noqa: B008
    """Return the index of what a pass over a shard in this state found."""
    return ShardIndex(
        size=state.size,
        mtime_ns=state.mtime_ns,
        cut=scan.cut,
        problems=scan.problems,
        offsets=np.array([one.offset for one in scan.found], "<u8"),
        sizes=np.array([one.size for one in scan.found], "<u8"),
        labels=np.array([one.label for one in scan.found], "<i4"),
        **_packed(one.key for one in scan.found),
        layout=layout,
        names=scan.names,
        texts=scan.texts,
        passed_over=scan.passed_over,
        label_files=scan.label_files,
    )


def _made(shard: Path, layout: str, keys: Keys | None) -> ShardIndex:
    with shard.open("rb") as file:
        state = FileState.of(os.fstat(file.fileno()))
        if layout == CLASS_TARS:
            found = scan_class_tars(file, state.size)
        else:
            found = scan(file, state.size, keys=keys or Keys())
    return replace(from_scan(found, state, layout), contents=contents_of([shard], [state], OF_SHARD))


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
    except NPZ_DAMAGE:
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


def index_paths(shard: Path) -> tuple[Path, Path]:
    """Return the paths that an index may have: beside the shard, and in the user's cache."""
    path = str(shard.resolve())
    cache = user_cache() / "titokctl" / "shard-index"
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    return shard.parent / FOLDER / f"{shard.name}.npz", cache / f"{digest}-{shard.name}.npz"


def _kept(shard: Path, state: FileState, layout: str) -> ShardIndex | None:
    for path in index_paths(shard):
        try:
            index = _deserialize(path.read_bytes())
        except OSError:
            continue
        if index is None or index.layout != layout or index.state != state:
            continue
        if index.contents == contents_of([shard], [state], OF_SHARD):
            return index
    return None


def _keep(shard: Path, index: ShardIndex) -> None:
    """Save the index in the first folder that can be written."""
    for path in index_paths(shard):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, _serialize(index))
            return
        except (OSError, UserError):
            continue
