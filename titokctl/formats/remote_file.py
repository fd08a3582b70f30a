"""Files on a server, read from front to end, or by ranges, even if the connection breaks.

http and https need only Python; other schemes (s3, gs, hf, ...) are opened by fsspec and its plug-ins. After a failure
the stream resumes at its position: with a range request where the server supports them, otherwise by downloading again
and discarding the first part. A server that sends no ETag and no date can't say if the file is still the same: then it
is downloaded again, and the first part is compared with what was read. Pauses between tries grow; progress resets them.
No address is ever passed to a shell, and messages and records hold none with its secrets (`shown`).
"""

import hashlib
import http.client
import io
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

from titokctl import __version__
from titokctl.errors import UserError, install
from titokctl.formats.forward_stream import ForwardStream

T = TypeVar("T")
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds before each retry
_TIMEOUT_S = 60.0
_CONNECT_S, _REPLY_S = 5.0, 20.0  # of object stores
_RETRIED = (408, 425, 429, 500, 502, 503, 504)
_NOT_GIVEN = (401, 403, 404, 410)
_HTTP = ("http", "https")
_SCHEMES = (*_HTTP, "s3", "gs", "gcs", "hf", "az", "abfs", "memory", "file")
_EXTRAS = {"s3": "s3", "gs": "gcs", "gcs": "gcs", "hf": "hub"}
_VERSIONS = ("ETag", "etag", "md5Hash", "blob_id", "mtime", "LastModified", "last_modified")
_PIECE = 1 << 20
_SMALL = 64 << 20  # most bytes of a file that is fetched whole


class Gone(Exception):
    """The server has no such file, or denies access to it (as object stores do for missing files)."""


@dataclass(frozen=True)
class RemoteFile:
    """A file as the server describes it: `size` in bytes or None, `version` (ETag or date) or ""."""

    url: str
    size: int | None
    version: str


def scheme_of(url: str) -> str:
    """Return the scheme of a URL; "" for a path."""
    found = re.match(r"([a-z][a-z0-9+.-]*)://", url)
    return found[1] if found else ""


def check_url(url: str) -> None:
    """Raise UserError for a scheme that is not supported."""
    if scheme_of(url) not in _SCHEMES or "::" in url:
        raise UserError(f"the scheme of {shown(url)} is not supported", f"supported: {', '.join(_SCHEMES)}")


def shown(url: str) -> str:
    """Return a URL without user, password, query and fragment, which may hold secrets such as a signature."""
    if not scheme_of(url):
        return url
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def folder_and_name(url: str) -> tuple[str, str]:
    """Return the URL of the folder of a file and the file's name, both without query."""
    folder, _, name = shown(url).rpartition("/")
    return folder, name


def sibling(url: str, name: str) -> str:
    """Return the URL of the file `name` beside `url`, with the same access."""
    parts = urllib.parse.urlsplit(url)
    folder = parts.path.rpartition("/")[0]
    return urllib.parse.urlunsplit(parts._replace(path=f"{folder}/{name}", fragment=""))


class RemoteStream(ForwardStream):
    """A file on a server as a binary file that is only read forwards.

    Args:
        url: http(s):// or a scheme of fsspec.
        pauses: seconds to wait before each retry without progress; PAUSES by default.

    Raises:
        Gone: the server has no such file, or denies access.
        UserError: it changes while it is read, or can't be reached after all retries.
    """

    def __init__(self, url: str, pauses: Sequence[float] | None = None) -> None:
        check_url(url)
        self._pauses = PAUSES if pauses is None else pauses
        self._opened = _http_at if scheme_of(url) in _HTTP else _fsspec_at
        self._stream, self.file = self._reopen(url)
        # Of a file without a version, what was read is compared after a break.
        self._seen = None if self.file.version else hashlib.sha256()

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()

    def _some(self, count: int) -> bytes:
        """Return 1 to `count` bytes, or none at the end. Raises UserError after all retries without progress."""
        problem: Exception = http.client.IncompleteRead(b"")
        is_at_position = True
        for pause in (*self._pauses, None):
            try:
                if not is_at_position:
                    self._resume()
                    is_at_position = True
                data = self._stream.read(count)
            except Exception as error:
                if isinstance(error, UserError | Gone):
                    raise
                if not _is_temporary(error):
                    raise _in_words(self.file.url, error) from error
                problem = error
            else:
                if data or self.file.size is None or self._position >= self.file.size:
                    if self._seen is not None:
                        self._seen.update(data)
                    return data
            is_at_position = False
            if pause is not None:
                time.sleep(pause)
        raise _in_words(self.file.url, problem)

    def _resume(self) -> None:
        """Open the file again at the position of the stream. Raises UserError when it is another one."""
        self._stream.close()
        begin = self._position if self._seen is None else 0
        self._stream, now = self._reopen(self.file.url, begin)
        if (now.size, now.version) != (self.file.size, self.file.version) or not self._is_same_start():
            raise UserError(f"{shown(self.file.url)} changed while it was read", "run the same command again")

    def _is_same_start(self) -> bool:
        """Read a file without a version up to the position of the stream; return True if it starts as before."""
        if self._seen is None:
            return True
        again, left = hashlib.sha256(), self._position
        while left and (piece := self._stream.read(min(left, _PIECE))):
            again.update(piece)
            left -= len(piece)
        if left:
            raise ConnectionError("the connection broke again")
        return again.digest() == self._seen.digest()

    def _reopen(self, url: str, position: int = 0) -> tuple[BinaryIO, RemoteFile]:
        """Open the file at `position`, with a retry after each temporary failure."""
        return _retried(url, self._pauses, lambda: self._opened(url, position))


class RemoteRanges(io.RawIOBase):
    """A file on a server as a binary file that is read at any position; each read is one request for a range.

    Args:
        file: as the server described it; `size` and `version` are known.
        pauses: seconds to wait before each retry; PAUSES by default.

    Raises UserError when it changed since it was described, can't be reached after all retries, or the server does not
    support ranges.
    """

    def __init__(self, file: RemoteFile, pauses: Sequence[float] | None = None) -> None:
        self._file, self._size = file, file.size or 0
        self._pauses = PAUSES if pauses is None else pauses
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        self._position = position + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        end = min(self._position + len(view), self._size)
        if end <= self._position:
            return 0
        data = _retried(self._file.url, self._pauses, lambda: self._range(self._position, end))
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _range(self, begin: int, end: int) -> bytes:
        opened = _http_at if scheme_of(self._file.url) in _HTTP else _fsspec_at
        stream, now = opened(self._file.url, begin, end)
        with stream:
            if (now.size, now.version) != (self._file.size, self._file.version):
                raise UserError(f"{shown(self._file.url)} changed while it was read", "run the same command again")
            data = stream.read(end - begin)
        if len(data) < end - begin:
            raise http.client.IncompleteRead(data, end - begin - len(data))
        return data


def fetch(url: str) -> bytes | None:
    """Return a small file; None when there is none. Raises UserError when the server can't be reached."""
    try:
        with RemoteStream(url) as stream:
            data = stream.read(_SMALL + 1)
    except Gone:
        return None
    if len(data) > _SMALL:
        raise UserError(f"{shown(url)} is larger than the {_SMALL:,} bytes expected at most")
    return data


def _retried(url: str, pauses: Sequence[float], attempt: Callable[[], T]) -> T:
    """Return attempt(), which is called again after each temporary failure."""
    for pause in (*pauses, None):
        try:
            return attempt()
        except (UserError, Gone):
            raise
        except Exception as error:
            if pause is None or not _is_temporary(error):
                raise _in_words(url, error) from error
            time.sleep(pause)
    raise AssertionError("not reached")


class _WebOnly(urllib.request.HTTPRedirectHandler):
    """Follow redirects to http and https alone: a server must not lead to files, or to other protocols."""

    def redirect_request(self, *arguments: Any) -> urllib.request.Request | None:
        target = str(arguments[-1])
        if not target.lower().startswith(("http://", "https://")):
            raise UserError(f"{arguments[0].full_url} redirects to {target[:200]}, which is not followed")
        return super().redirect_request(*arguments)


_OPENER = urllib.request.build_opener(_WebOnly)


def _http_at(url: str, position: int, end: int | None = None) -> tuple[BinaryIO, RemoteFile]:
    """Request the file from `position` on, or up to `end`; a server without ranges is refused then."""
    # In a compressed response, neither size nor positions would be those of the file.
    headers = {"User-Agent": f"titokctl/{__version__}", "Accept-Encoding": "identity"}
    if position or end is not None:
        headers["Range"] = f"bytes={position}-" + ("" if end is None else str(end - 1))
    try:
        response = _OPENER.open(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in _NOT_GIVEN:
            what = "not found:" if error.code in (404, 410) else f"access denied ({error.code}):"
            raise Gone(f"{what} {shown(url)}") from error
        raise
    length = response.headers.get("Content-Length")
    version = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
    size = int(length) if length and length.isdecimal() else None
    if end is not None and response.status != 206:
        response.close()
        raise UserError(
            f"the server of {shown(url)} does not support ranges",
            f"download the file first, then name {folder_and_name(url)[1]}",
        )
    if response.status == 206:
        whole = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if whole is None or int(whole[1]) != position:
            raise UserError(f"{shown(url)}: the server sent another range than the requested one")
        return response, RemoteFile(url, int(whole[2]), version)
    skipped = 0
    while skipped < position:
        piece = response.read(min(position - skipped, _PIECE))
        if not piece:
            raise http.client.IncompleteRead(b"")
        skipped += len(piece)
    return response, RemoteFile(url, size, version)


def _fsspec_at(url: str, position: int, end: int | None = None) -> tuple[BinaryIO, RemoteFile]:
    """Open the file at `position`; up to `end`, only that range is fetched."""
    file_system, path = file_system_of(url)
    try:
        facts = file_system.info(path)
        if end is not None:
            fetched = io.BytesIO(file_system.cat_file(path, start=position, end=end))
            return fetched, RemoteFile(url, facts.get("size"), _version_in(facts))
        stream = file_system.open(path, "rb")
    except FileNotFoundError as error:
        raise Gone(f"not found: {shown(url)}") from error
    stream.seek(position)
    return stream, RemoteFile(url, facts.get("size"), _version_in(facts))


def _version_in(facts: Mapping[str, Any]) -> str:
    """Return the version of a file, by whatever name its file system has for it; "" if there is none."""
    return next((str(facts[name]) for name in _VERSIONS if facts.get(name)), "")


def file_system_of(url: str) -> tuple[Any, str]:
    """Return fsspec's file system and path of a URL. Raises UserError when its plug-in is missing."""
    from fsspec.core import url_to_fs

    try:
        found, path = url_to_fs(url, **_options(scheme_of(url)))
        if hasattr(found, "retries"):
            found.retries = 1
        return found, path
    except (ImportError, ValueError) as error:
        extra = _EXTRAS.get(scheme_of(url))
        hint = install(extra) if extra else f"install fsspec's plug-in for {scheme_of(url)}"
        raise UserError(f"{scheme_of(url)}:// needs a package that is not installed ({error})", hint) from error


def _options(scheme: str) -> dict[str, Any]:
    """Return options for a plug-in of fsspec: only this module and `object_store` retry, and no reply is awaited long.

    Retries of boto, of its plug-in and ours would multiply. fsspec's own configuration and AWS_MAX_ATTEMPTS prevail.
    """
    if scheme != "s3":
        return {}
    from fsspec.config import conf

    once = {} if "AWS_MAX_ATTEMPTS" in os.environ else {"retries": {"total_max_attempts": 1}}
    given = conf.get("s3", {}).get("config_kwargs", {})
    return {"config_kwargs": {"connect_timeout": _CONNECT_S, "read_timeout": _REPLY_S, **once, **given}}


def _is_temporary(error: Exception) -> bool:
    """Return True if a retry may help."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code in _RETRIED
    if isinstance(error, FileNotFoundError | PermissionError | UserError):
        return False
    return isinstance(error, OSError | http.client.HTTPException)


def _in_words(url: str, error: Exception) -> UserError:
    if isinstance(error, urllib.error.HTTPError):
        return UserError(
            f"{shown(url)}: the server says {error.code} {error.reason}", "check the address and your access"
        )
    text = " ".join(str(error).replace(url, shown(url)).split()) or type(error).__name__
    return UserError(
        f"{shown(url)} can't be read: {text}",
        "check the address and the connection, then run the same command again to resume",
    )
