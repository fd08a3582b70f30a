"""Files of tables: parquet and arrow files here, and parquet files on a server, of which only parts are read.

Of a file on a server, the facts and the columns that are needed are requested by their ranges; no image is fetched
before it is read. The server must support ranges and give its files versions (an ETag or a date), since parts of two
versions would make a row that neither has. Needs pyarrow, from the `parquet` extra.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, Protocol, TypeVar

from titokctl.data.sources.arrow_files import SUFFIX as ARROW
from titokctl.data.sources.arrow_files import ArrowFile
from titokctl.data.sources.choices import NO_SPLIT
from titokctl.data.sources.class_folders import SPLITS
from titokctl.data.sources.folder_listing import HIDDEN, sub_folders, suffix_of
from titokctl.data.sources.shards import expand_pattern
from titokctl.errors import UserError, install
from titokctl.formats.file_kind import HEAD_BYTES, described, head_of, hint_for, kind_of
from titokctl.formats.gzip_stream import is_shard
from titokctl.formats.local_file import FileState, changed, retried
from titokctl.formats.remote_file import (
    Gone,
    RemoteFile,
    RemoteRanges,
    RemoteStream,
    file_system_of,
    folder_and_name,
    scheme_of,
    shown,
)

SUFFIX = ".parquet"
T = TypeVar("T")
P = TypeVar("P", bound=PurePath)


class TableFile(Protocol):
    """One file of a data set.

    `address` is recorded and shown, `size` in bytes; `version` changes when a file on a server does, and is "" for a
    file here, which has a `FileState` instead.
    """

    address: str
    name: str
    size: int
    version: str

    def check(self) -> None:
        """Raise UserError if the file was replaced or changed since it was opened first."""

    def opened(self) -> Any:
        """Return a context with pyarrow's ParquetFile, or with what has its interface."""

    def head(self) -> bytes:
        """Return the first bytes; b"" if they can't be read."""


@dataclass
class LocalTable:
    """A parquet or arrow file on a disk."""

    path: Path
    version: str = ""

    def __post_init__(self) -> None:
        self.state = FileState.of(retried(self.path.stat, self.path))
        self.address, self.name, self.size = str(self.path.resolve()), self.path.name, self.state.size

    def __str__(self) -> str:
        return str(self.path)

    def check(self) -> None:
        now = FileState.of(retried(self.path.stat, self.path))
        if now != self.state:
            raise changed(self.path, self.state, now)

    def opened(self) -> Any:
        import pyarrow.parquet as pq

        return ArrowFile(self.path) if self.path.suffix == ARROW else pq.ParquetFile(self.path)

    def head(self) -> bytes:
        return head_of(self.path)


@dataclass
class RemoteTable:
    """A parquet file on a server. Raises UserError when the server has none, or can't give parts of it safely."""

    url: str
    file: RemoteFile = field(init=False)

    def __post_init__(self) -> None:
        try:
            with RemoteStream(self.url) as stream:
                self._head, self.file = stream.read(HEAD_BYTES), stream.file
        except Gone as error:
            raise UserError(str(error), "check the address and your access") from error
        kind = kind_of(self._head)
        if kind is None or kind.name != "parquet":
            what, hint = described(self._head), hint_for(self._head, str(self), "check the address and your access")
            raise UserError(f"{self} can't be read as parquet: it is {what}", hint)
        if self.file.size is None or not self.file.version:
            missing = "its size" if self.file.size is None else "its version, an ETag or a date"
            raise UserError(
                f"the server of {self} does not send {missing}, so parts of it can't be read safely",
                f"download it first, then name {folder_and_name(self.url)[1]}",
            )
        self.address, self.name, self.size = shown(self.url), folder_and_name(self.url)[1], self.file.size
        self.version = f"{self.file.size} {self.file.version}"
        self._facts: Any = None  # the file's metadata, once they were read

    def __str__(self) -> str:
        return shown(self.url)

    def check(self) -> None:
        """Do nothing: every range says which version of the file it is of."""

    def opened(self) -> Any:
        import pyarrow.parquet as pq

        # Arrow's own threads would call Python, and abort the process if they still do when it ends.
        found = pq.ParquetFile(RemoteRanges(self.file), metadata=self._facts, pre_buffer=False)
        self._facts = found.metadata
        return found

    def head(self) -> bytes:
        return self._head


def reading(table: TableFile, use: Callable[[Any], T]) -> T:
    """Return use(open ParquetFile). Raises UserError, which names the file, when it can't be read."""
    try:
        import pyarrow as pa
        import pyarrow.parquet
    except ImportError as error:
        raise UserError("parquet files need the package pyarrow, which is not installed", install("parquet")) from error
    try:
        with table.opened() as file:
            return use(file)
    except UserError as error:
        if error.message.startswith(str(table)):
            raise
        raise UserError(f"{table}: {error.message}", error.hint) from error
    # Names and metadata that are damaged raise errors of Python's.
    except (pa.ArrowException, OSError, MemoryError, ValueError, LookupError, OverflowError) as error:
        text, head = " ".join(str(error).split()), table.head()
        kind = kind_of(head)
        what = text if kind is None or kind.name in ("parquet", "arrow") else described(head)
        hint = hint_for(head, str(table), "copy or download it again")
        suffix = PurePosixPath(table.name).suffix[1:]
        raise UserError(f"{table} can't be read as {suffix}: {what}", hint) from error


def parquet_in(path: Path, split: str | None = None) -> list[Path]:
    """Return the parquet files of one split in a folder, sorted.

    They lie in the folder, in its `data/`, or in folders of the splits, also below that of one configuration, as the
    Hub converts data sets (default/train/0000.parquet). The split is that of a file's folder, or the start of its name.

    Args:
        split: None for `train`, or for all files if none is of that split.

    Raises UserError for several configurations, or if the split has no file.
    """
    files = _files_in(path) or _files_in(path / "data")
    files = files or [file for name in SPLITS for file in _files_in(path / name)]
    if not files:
        # Only where the names of splits are: listing all folders of a large set of images takes seconds.
        files = [file for name in sub_folders(path) for s in SPLITS for file in _files_in(path / name / s)]
    return _of_split(files, split, str(path))


def parquet_on_server(url: str, split: str | None = None) -> list[str]:
    """Return the parquet files that an address names: a file, a brace pattern, or a folder that can be listed.

    Returns [] where it names something else. A folder ends with a slash; the rules for splits are those of
    `parquet_in`, and if there are shards in it, it is a folder of shards.
    """
    found = []
    for one in expand_pattern(url):
        if shown(one).endswith(SUFFIX):
            found.append(one)
        elif shown(one).endswith("/") and scheme_of(one) not in ("http", "https"):
            found += _listed(one, split)
    return found


def count_on_server(url: str, read: Collection[str]) -> Counter[str]:
    """Return the numbers of files by suffix in a folder on a server, beside the addresses that are read.

    Raises UserError when the folder can't be listed.
    """
    others = [name for name in _names_below(url) if f"{shown(url)}{name}" not in read]
    is_hidden = [any(part.startswith(".") for part in name.split("/")) for name in others]
    return Counter(HIDDEN if hidden else suffix_of(name) for name, hidden in zip(others, is_hidden, strict=True))


def _names_below(url: str) -> list[str]:
    """Return the names of all files below a folder on a server, relative to it, sorted."""
    file_system, root = file_system_of(url)
    try:
        names = sorted(str(name) for name in file_system.find(root))
    except (OSError, ValueError) as error:
        raise UserError(f"{shown(url)} can't be listed: {error}", "check the address and your access") from error
    return [name[len(root.rstrip("/")) + 1 :] for name in names]


def _listed(url: str, split: str | None) -> list[str]:
    names = _names_below(url)
    if any(is_shard(name) for name in names):
        return []
    below = [PurePosixPath(name) for name in names if name.endswith(SUFFIX)]
    return [f"{url}{name}" for name in _of_split(below, split, shown(url))]


def _of_split(files: Sequence[P], split: str | None, where: str) -> list[P]:
    folders = {p.parent.parent for p in files if p.parent.name in SPLITS}
    if len(folders) > 1:
        named = ", ".join(sorted(folder.name for folder in folders))
        raise UserError(f"{where} holds several configurations: {named}", f"name one, such as {min(folders)}")
    wanted = "train" if split in (None, NO_SPLIT) else str(split)
    found = [p for p in files if p.parent.name == wanted or re.match(rf"{re.escape(wanted)}([-_.]|$)", p.stem)]
    if split not in (None, NO_SPLIT) and files and not found:
        raise UserError(f"{where} has no parquet files of the split {split}", f"the first one is {files[0].name}")
    return found or list(files)


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(f"*{SUFFIX}") if not path.name.startswith("."))
