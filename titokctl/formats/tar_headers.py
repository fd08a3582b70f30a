"""The members of a tar file by their headers alone, with a check of its end.

The standard library's tarfile parses the headers (ustar, pax, GNU long names and large sizes). tarfile takes any end of
file as the end of the tar: of one that was cut between two members, or inside a header, samples would be lost without a
message. Here a tar ends only with two blocks of zeros, with nothing but zeros behind them. Nothing is ever extracted,
so names such as ../x or /etc/x do no harm.
"""

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

BLOCK = tarfile.BLOCKSIZE
_ZEROS = bytes(BLOCK)
_MAX_RECORD = 1 << 20  # bytes of a long name or of pax records
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_NAMING = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_RECORDS = (*_NAMING, tarfile.XGLTYPE)


class BrokenTar(Exception):
    """The file ends before its tar does, or isn't a tar.

    `cut` is True when the members before are whole and only the rest is missing.
    """

    def __init__(self, text: str, cut: bool) -> None:
        super().__init__(text)
        self.cut = cut


FILE, HARD_LINK, SYMBOLIC_LINK = "file", "hard link", "symbolic link"
_OTHERS = {
    tarfile.LNKTYPE: HARD_LINK,
    tarfile.SYMTYPE: SYMBOLIC_LINK,
    tarfile.CHRTYPE: "device",
    tarfile.BLKTYPE: "device",
    tarfile.FIFOTYPE: "pipe",
    tarfile.GNUTYPE_SPARSE: "sparse file",
}


@dataclass(frozen=True)
class Member:
    """A member of a tar that is not a folder.

    Args:
        name: its path in the tar.
        offset, size: where the content of a file is.
        type: FILE, HARD_LINK, SYMBOLIC_LINK, or another type in words, whose content is not read.
        target: of a link, the path that it names.
    """

    name: str
    offset: int
    size: int
    type: str = FILE
    target: str = ""


def entries(file: BinaryIO, length: int, begin: int = 0) -> Iterator[Member]:
    """Yield the members of the tar that fills `file` from byte `begin` to byte `length`, in order, without folders.

    `file` is only sought forwards, so a stream that can skip will do. Every member that is yielded is whole.

    Raises:
        BrokenTar: at the position where the tar is cut or damaged.
    """
    position = begin
    records: dict[bytes, bytes] = {}  # long names and pax records of the next member, each with its header
    while True:
        header = _read(file, position, min(BLOCK, length - position))
        if len(header) < BLOCK:
            what = "its end marker is missing" if not header else "it ends inside a header"
            raise BrokenTar(f"cut after {position:,} bytes: {what}", cut=True)
        if header == _ZEROS:
            return _check_end(file, position + BLOCK, length)
        is_record = header[156:157] in _RECORDS
        info = _parsed(header if is_record else b"".join(records.values()) + header, position)
        named = info
        if info.sparse is not None:  # its size is that of the unpacked file
            info = _parsed(header, position)
        # Links and folders have no content, whatever their size says.
        size = info.size if is_record or info.isreg() or info.type not in tarfile.SUPPORTED_TYPES else 0
        content = position + BLOCK
        if size < 0:
            raise BrokenTar(f"a negative size in the tar header at byte {position:,}", cut=False)
        if content + size > length:
            raise BrokenTar(f"cut after {length:,} bytes: it ends inside a member", cut=True)
        if is_record:
            if size > _MAX_RECORD:
                raise BrokenTar(f"a name of {size:,} bytes at byte {position:,}", cut=False)
            if info.type in _NAMING:
                records[info.type] = header + _read(file, content, size).ljust(_padded(size), b"\0")
        else:
            if not info.isdir():
                kind = FILE if info.type in _REGULAR else _OTHERS.get(info.type, "member of an unknown type")
                kind = "sparse file" if named.sparse is not None else kind
                target = named.linkname.partition("\0")[0] if kind in (HARD_LINK, SYMBOLIC_LINK) else ""
                yield Member(named.name.partition("\0")[0], content, size, kind, target)
            records = {}
        position = content + _padded(size)


def members(file: BinaryIO, length: int, begin: int = 0) -> Iterator[Member]:
    """Yield the regular files among the `entries`, which says more."""
    return (member for member in entries(file, length, begin) if member.type == FILE)


def is_header(block: bytes) -> bool:
    """Return True if a tar can begin with `block`: with a header, or with the zeros at the end of an empty one."""
    try:
        return block == _ZEROS or bool(_parsed(block, 0))
    except BrokenTar:
        return False


def _parsed(blocks: bytes, position: int) -> tarfile.TarInfo:
    """Parse one header, or records and the header that they describe, without the member's content."""
    try:
        if len(blocks) == BLOCK:
            return tarfile.TarInfo.frombuf(blocks, "utf-8", "backslashreplace")
        with tarfile.TarFile(fileobj=io.BytesIO(blocks), encoding="utf-8", errors="backslashreplace") as tar:
            if (info := tar.next()) is not None:
                return info
        raise ValueError("no header behind the records")
    # tarfile raises several exceptions for damaged records, not all of them documented.
    except (tarfile.TarError, ValueError, IndexError, OverflowError) as error:
        raise BrokenTar(f"not a tar header at byte {position:,}", cut=False) from error


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _read(file: BinaryIO, position: int, count: int) -> bytes:
    if count <= 0:
        return b""
    file.seek(position)
    return file.read(count)


def _check_end(file: BinaryIO, position: int, length: int) -> None:
    """Raise BrokenTar unless a second block of zeros follows, and nothing but zeros after it."""
    second = _read(file, position, min(BLOCK, length - position))
    if len(second) < BLOCK:
        raise BrokenTar(f"cut after {position + len(second):,} bytes: it ends inside its end marker", cut=True)
    if second != _ZEROS:
        raise BrokenTar(f"a single block of zeros at byte {position - BLOCK:,}", cut=False)
    rest = length - position - BLOCK
    while chunk := file.read(min(1 << 20, rest)):
        rest -= len(chunk)
        if chunk.strip(b"\0"):
            raise BrokenTar(
                f"there is more after its end at byte {position + BLOCK:,} (several tars in one?)", cut=False
            )
