"""The kind of a file by its first bytes, so that a message can say what a file is, and not only what it is not.

Names lie: a clone without Git LFS leaves pointers under the names of images, and a download that needs a login leaves
an HTML page under the name of a shard. Every reader that refuses a file uses `described`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HEAD_BYTES = 512  # enough for every signature below
# Suffixes of files that are taken for images whatever their first bytes are.
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "avif", "jfif", "jpe")

_Test = Callable[[bytes], bool]


@dataclass(frozen=True)
class FileKind:
    """A kind of file.

    Args:
        name: a stable word for it.
        words: the kind in words, with its article.
        hint: says what to do where another kind was expected; "" for nothing in particular. {} is the file.
    """

    name: str
    words: str
    hint: str = ""


def _starts(*signatures: bytes) -> _Test:
    return lambda head: head.startswith(signatures)


def _is_avif(head: bytes) -> bool:
    return head[4:8] == b"ftyp" and b"avif" in (head[8:12], *(head[i : i + 4] for i in range(16, 32, 4)))


def _is_heif(head: bytes) -> bool:
    return head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"mif1", b"msf1", b"hevc")


def _is_html(head: bytes) -> bool:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return text.startswith((b"<!doctype html", b"<html", b"<head", b"<body", b"<script"))


def _is_bmp(head: bytes) -> bool:
    # "BM" alone begins many texts: the size of the second header decides.
    return head[:2] == b"BM" and head[14:18] in _BMP_HEADERS


_BMP_HEADERS = tuple(size.to_bytes(4, "little") for size in (12, 40, 52, 56, 64, 108, 124))
_UNPACK = "unpack it first: "
IMAGE_KINDS: tuple[tuple[FileKind, _Test], ...] = (
    (FileKind("jpg", "a JPEG"), _starts(b"\xff\xd8\xff")),
    (FileKind("png", "a PNG"), _starts(b"\x89PNG\r\n\x1a\n")),
    (FileKind("webp", "a WebP"), lambda head: head[:4] == b"RIFF" and head[8:12] == b"WEBP"),
    (FileKind("gif", "a GIF"), _starts(b"GIF87a", b"GIF89a")),
    (FileKind("bmp", "a BMP"), _is_bmp),
    (FileKind("tiff", "a TIFF"), _starts(b"II*\0", b"MM\0*")),
    (FileKind("avif", "an AVIF"), _is_avif),
)
_OTHER_KINDS: tuple[tuple[FileKind, _Test], ...] = (
    (
        FileKind("lfs", "a Git LFS pointer, not the file itself", "fetch the files in its repository: git lfs pull"),
        _starts(b"version https://git-lfs.github.com/spec/"),
    ),
    (FileKind("html", "an HTML page, perhaps of a login", "download it again, with the access it needs"), _is_html),
    (FileKind("xml", "an XML document, perhaps a server's error"), _starts(b"<?xml", b"<Error")),
    (FileKind("heif", "a HEIF image", "convert it to PNG or JPEG first"), _is_heif),
    (FileKind("jxl", "a JPEG XL image", "convert it to PNG or JPEG first"), _starts(b"\xff\x0a", b"\0\0\0\x0cJXL ")),
    (FileKind("jp2", "a JPEG 2000 image", "convert it to PNG or JPEG first"), _starts(b"\0\0\0\x0cjP  ")),
    (FileKind("gzip", "compressed with gzip", _UNPACK + "gunzip -k {}"), _starts(b"\x1f\x8b")),
    (FileKind("zstd", "compressed with zstd", _UNPACK + "zstd -dk {}"), _starts(b"\x28\xb5\x2f\xfd")),
    (FileKind("xz", "compressed with xz", _UNPACK + "xz -dk {}"), _starts(b"\xfd7zXZ\0")),
    (FileKind("bzip2", "compressed with bzip2", _UNPACK + "bzip2 -dk {}"), _starts(b"BZh")),
    (FileKind("parquet", "a parquet file", "name files that end with .parquet"), _starts(b"PAR1")),
    (FileKind("arrow", "an Arrow file"), _starts(b"ARROW1", b"\xff\xff\xff\xff")),
    (FileKind("hdf5", "an HDF5 file"), _starts(b"\x89HDF\r\n\x1a\n")),
    (FileKind("zip", "a zip archive"), _starts(b"PK\x03\x04", b"PK\x05\x06")),
    (FileKind("rar", "a RAR archive", _UNPACK + "unrar x {}"), _starts(b"Rar!")),
    (FileKind("7z", "a 7z archive", _UNPACK + "7z x {}"), _starts(b"7z\xbc\xaf\x27\x1c")),
    (FileKind("npy", "a NumPy array"), _starts(b"\x93NUMPY")),
    (FileKind("pdf", "a PDF document"), _starts(b"%PDF")),
    (FileKind("postscript", "a PostScript document"), _starts(b"%!PS")),
    (FileKind("tar", "a tar file"), lambda head: head[257:262] == b"ustar"),
    (FileKind("svg", "an SVG drawing", "convert it to PNG first"), _starts(b"<svg")),
    (FileKind("json", "a JSON text"), _starts(b"{", b"[")),
)


def kind_of(head: bytes) -> FileKind | None:
    """Return the kind of the file that starts with the bytes `head`; None if it is unknown."""
    return next((kind for kind, fits in (*IMAGE_KINDS, *_OTHER_KINDS) if fits(head)), None)


def image_kind(head: bytes) -> str | None:
    """Return "jpg", "png", "webp", "gif", "bmp", "tiff" or "avif" for the first bytes of such an image, else None."""
    return next((kind.name for kind, fits in IMAGE_KINDS if fits(head)), None)


def head_of(path: Path) -> bytes:
    """Return the first bytes of a regular file; b"" if there is none or it can't be read."""
    try:
        if not path.is_file():
            return b""
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except OSError:
        return b""


def mistaken(head: bytes, *expected: str) -> FileKind | None:
    """Return the kind of a file that could not be read as what it should be; None if it is unknown.

    Args:
        expected: names of kinds that it may well be, damaged.
    """
    kind = kind_of(head)
    return None if kind is None or kind.name in expected else kind


def described(head: bytes) -> str:
    """Return in words what the file that starts with `head` is: its kind, or else its first bytes."""
    if not head:
        return "an empty file"
    kind = kind_of(head)
    return kind.words if kind is not None else f"a file that starts with {head[:8]!r}"


def hint_for(head: bytes, path: Path | str, otherwise: str = "") -> str:
    """Return what to do about a file of another kind than the expected one; `otherwise` if nothing is known."""
    kind = kind_of(head)
    return kind.hint.replace("{}", str(path)) if kind is not None and kind.hint else otherwise
