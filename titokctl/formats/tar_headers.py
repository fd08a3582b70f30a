"""The members of a tar file by their headers alone, with an end that is checked.

Specification (POSIX.1-2001 ustar and pax, GNU long names): a member is a 512-byte header, whose checksum is the sum of
its bytes with the checksum field as blanks, and its content padded to 512 bytes; two blocks of zeros end the file.
Readers commonly take any end of file as the end: a tar cut between two members, or inside a header, would lose samples
in silence. Here only the two zero blocks, with nothing but zeros behind them, end a tar. Nothing is ever extracted, so
names like ../x or /etc/x are only names.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

BLOCK = 512
_ZEROS = bytes(BLOCK)
_MAX_EXTENDED = 1 << 20  # long names and pax records; anything larger is no name
_REGULAR = (b"0", b"\0", b"7")


class BrokenTar(Exception):
    """The file ends before its tar does, or is none.

    `cut` is True when the members seen so far are whole and only the rest is missing.
    """

    def __init__(self, text: str, cut: bool) -> None:
        super().__init__(text)
        self.cut = cut


@dataclass(frozen=True)
class Member:
    """A regular file in a tar: `size` bytes at `offset`."""

    name: str
    offset: int
    size: int


def members(file: BinaryIO, length: int, begin: int = 0) -> Iterator[Member]:
    """The regular files of the tar that fills `file` from byte `begin` to byte `length`, in order.

    `file` is only ever sought forwards, so a stream that can skip will do. Members given out are whole. Raises
    BrokenTar at the place where the tar stops being one.
    """
    position = begin
    long_name: str | None = None
    pax: dict[str, str] = {}
    while True:
        header = _read(file, position, min(BLOCK, length - position))
        if len(header) < BLOCK:
            what = "its end marker is missing" if not header else "it ends inside a header"
            raise BrokenTar(f"cut after {position:,} bytes: {what}", cut=True)
        if header == _ZEROS:
            return _check_end(file, position + BLOCK, length)
        kind, size = header[156:157], _check_header(header, position)
        # A pax size stands for sizes the header's field can't hold.
        size = _number(pax["size"], position) if "size" in pax and kind in _REGULAR else size
        content = position + BLOCK
        if content + size > length:
            raise BrokenTar(f"cut after {length:,} bytes: it ends inside a member", cut=True)
        if kind in (b"L", b"x", b"g"):
            if size > _MAX_EXTENDED:
                raise BrokenTar(f"a name of {size:,} bytes at byte {position:,}", cut=False)
            text = _read(file, content, size)
            if kind == b"L":
                long_name = _text(text)
            elif kind == b"x":
                pax = _pax_records(text)
        else:
            if kind in _REGULAR:
                yield Member(long_name or pax.get("path") or _name(header), content, size)
            long_name, pax = None, {}
        position = content + (size + BLOCK - 1) // BLOCK * BLOCK


def _read(file: BinaryIO, position: int, count: int) -> bytes:
    if count <= 0:
        return b""
    file.seek(position)
    return file.read(count)


def _check_header(header: bytes, position: int) -> int:
    """The size in a header whose checksum fits."""
    total = sum(header) - sum(header[148:156]) + 8 * 32
    field = header[148:156].split(b"\0")[0].strip()
    if not field or field.strip(b"01234567") or int(field, 8) != total:
        raise BrokenTar(f"no tar header at byte {position:,}", cut=False)
    size = header[124:136]
    if size[0] & 0x80:  # base 256, for members of 8 GiB and more
        return int.from_bytes(bytes([size[0] & 0x7F]) + size[1:], "big")
    digits = size.split(b"\0")[0].strip()
    if digits.strip(b"01234567"):
        raise BrokenTar(f"no size in the tar header at byte {position:,}", cut=False)
    return int(digits or b"0", 8)


def _check_end(file: BinaryIO, position: int, length: int) -> None:
    """A second zero block must follow, and nothing but zeros after it."""
    second = _read(file, position, min(BLOCK, length - position))
    if len(second) < BLOCK:
        raise BrokenTar(f"cut after {position + len(second):,} bytes: it ends inside its end marker", cut=True)
    if second != _ZEROS:
        raise BrokenTar(f"a lone block of zeros at byte {position - BLOCK:,}", cut=False)
    rest = length - position - BLOCK
    while chunk := file.read(min(1 << 20, rest)):
        rest -= len(chunk)
        if chunk.strip(b"\0"):
            raise BrokenTar(
                f"there is more after its end at byte {position + BLOCK:,} (several tars in one?)", cut=False
            )


def _name(header: bytes) -> str:
    name = _text(header[:100])
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _text(raw: bytes) -> str:
    return raw.split(b"\0")[0].decode("utf-8", "backslashreplace")


def _number(text: str, position: int) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise BrokenTar(f"a size of {text[:20]!r} before byte {position:,}", cut=False)
    return int(text)


def _pax_records(raw: bytes) -> dict[str, str]:
    """`length key=value\\n` records; what does not read as one ends the list."""
    found: dict[str, str] = {}
    while raw:
        digits, blank, _ = raw.partition(b" ")
        if not blank or not digits.isdigit() or len(digits) > 7 or not len(digits) < int(digits) <= len(raw):
            break
        record, raw = raw[len(digits) + 1 : int(digits)], raw[int(digits) :]
        key, _, value = record.rstrip(b"\n").partition(b"=")
        found[_text(key)] = _text(value)
    return found
