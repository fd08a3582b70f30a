"""Files compressed with gzip as streams that are read forwards, with checks of size, end and CRC.

`zlib` decompresses, and checks the CRC-32 and the length at the end of each member. A file must end with a whole
member, behind which there may be zeros. No more than one piece is in memory. Names of shards are here, too: `.tar`, or
`.tar.gz` and `.tgz` for compressed ones.
"""

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from titokctl.errors import UserError
from titokctl.formats.file_kind import head_of
from titokctl.formats.forward_stream import ForwardStream
from titokctl.formats.local_file import retried

_SUFFIXES = (".tar.gz", ".tgz")
SHARD_SUFFIXES = (".tar", *_SUFFIXES)
MAGIC = b"\x1f\x8b\x08"
MAX_RATIO, _FREE_BYTES = 100, 64 << 20
_PIECE = 1 << 18
_WITH_HEADER = 31  # of zlib's window bits: the format is gzip's
_AGAIN = "copy or download it again"
CUT_HINT = f"{_AGAIN}; with --accept-cut, `titokctl tokenize` takes its complete images"


class _Readable(Protocol):
    def read(self, count: int, /) -> bytes: ...

    def close(self) -> None: ...


def is_shard(path: Path | str) -> bool:
    """Return True for the name of a tar shard, compressed with gzip or not."""
    return str(path).endswith(SHARD_SUFFIXES)


def is_compressed_name(name: str) -> bool:
    """Return True for the name of a shard that is compressed with gzip."""
    return name.endswith(_SUFFIXES)


def plain_name(name: str) -> str:
    """Return the name that a shard has when it is not compressed: a.tar for a.tar.gz and a.tgz."""
    found = next((suffix for suffix in _SUFFIXES if name.endswith(suffix)), "")
    return f"{name.removesuffix(found)}.tar" if found else name


def is_gzip(path: Path) -> bool:
    """Return True if a file is compressed with gzip by its first bytes, whatever its name is."""
    return head_of(path).startswith(MAGIC)


class GzipStream(ForwardStream):
    """The decompressed bytes of a gzip file, as a binary file. Seeking back decompresses again from the start.

    Args:
        reopen: opens the compressed file at its start; called at once, and again for each seek back.
        name: of the file, for messages.
        accept_cut: give the bytes of a truncated file up to where it ends; then `cut` says where that is.

    Raises:
        UserError: the file can't be read, is damaged, is cut and `accept_cut` is False, or grows beyond MAX_RATIO times
            its size after its first 64 MiB.
    """

    def __init__(self, reopen: Callable[[], _Readable], name: Path | str, accept_cut: bool = False) -> None:
        self._reopen, self._name, self._accept_cut = reopen, name, accept_cut
        self.cut = ""
        self._start()

    @property
    def consumed(self) -> int:
        """Number of compressed bytes that were read."""
        return self._consumed

    def close(self) -> None:
        """Close the compressed file."""
        self._file.close()

    def _rewind(self, position: int) -> None:
        self.close()
        self._start()

    def _start(self) -> None:
        self._file = retried(self._reopen, self._name)
        self._position = self._consumed = 0
        self._input = b""
        self._member = zlib.decompressobj(_WITH_HEADER)

    def _some(self, count: int) -> bytes:
        while True:
            if self._member.eof and not self._next_member():
                return b""
            is_over = not self._input and not self._fill()
            try:
                data = self._member.decompress(self._input, count)  # without input: what zlib still holds
            except zlib.error as error:
                text = f"{self._name} is damaged in its first {self._consumed:,} bytes ({error})"
                raise UserError(text, _AGAIN) from error
            self._input = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
            if data:
                self._check_ratio(self._position + len(data))
                return data
            if is_over:
                return self._at_cut()

    def _at_cut(self) -> bytes:
        self.cut = f"its gzip data end after {self._consumed:,} bytes"
        if not self._accept_cut:
            raise UserError(f"{self._name} is cut: {self.cut}", CUT_HINT)
        return b""

    def _next_member(self) -> bool:
        """Begin another member, if there is one behind the zeros that may follow one."""
        self._input = self._input.lstrip(b"\0")
        while not self._input and self._fill():
            self._input = self._input.lstrip(b"\0")
        if self._input:
            self._member = zlib.decompressobj(_WITH_HEADER)
        return bool(self._input)

    def _fill(self) -> bool:
        self._input = retried(lambda: self._file.read(_PIECE), self._name)
        self._consumed += len(self._input)
        return bool(self._input)

    def _check_ratio(self, unpacked: int) -> None:
        if unpacked > max(_FREE_BYTES, MAX_RATIO * self._consumed):
            raise UserError(
                f"{self._name} unpacks to more than {MAX_RATIO} times its size, which images never do",
                f"if you trust it, unpack it yourself: gunzip -k {self._name}",
            )


def open_gzip(path: Path, accept_cut: bool = False) -> GzipStream:
    """Open a local file. Raises as `GzipStream`."""
    return GzipStream(lambda: path.open("rb", buffering=0), path, accept_cut)
