"""WebDataset shards on a server, each read once from front to end.

A unit is a whole shard, since a stream from a server can't be read by position. The number of samples per shard must
be known in advance: it comes from files beside the shards (`formats/shard_counts`), or a first pass counts the samples
and saves the number in the user's cache. It is checked when the shard is read.
"""

import hashlib
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from titokctl.data.sources.shard_checks import check_distinct, left_out, usable
from titokctl.data.sources.shards import expand_pattern
from titokctl.data.sources.source import OpenUnit, Rejected, Sample, SeekableSource, Source, Unit, description_of
from titokctl.data.workers import in_order
from titokctl.errors import UserError
from titokctl.formats.atomic import user_cache, write_json
from titokctl.formats.remote_file import (
    Gone,
    RemoteFile,
    RemoteStream,
    check_url,
    fetch,
    file_system_of,
    scheme_of,
)
from titokctl.formats.shard_counts import recorded_counts
from titokctl.formats.shard_index import from_scan
from titokctl.formats.shard_scan import Scan, scan
from titokctl.formats.tar_headers import BrokenTar

KIND = "remote"
_ENDLESS = 1 << 62
_AT_ONCE = 8
_HINT = "copy the shards to a disk here, or make a token cache of them with titokctl tokenize"


@dataclass
class RemoteShardSource(Source):
    """Samples of shards on a server; a unit is a whole shard."""

    urls: list[str] = field(default_factory=list)
    accept_cut: bool = False

    def __post_init__(self) -> None:
        self._names: dict[int, tuple[str, str]] = {}
        self._lock = threading.Lock()

    def open_unit(self, unit: Unit) -> OpenUnit:
        """Read one shard. Raises UserError when it is cut, or has another number of samples than recorded."""
        url = self.urls[unit.index]
        images: dict[int, bytes] = {}
        _, found = _scan(url, images)
        if found.cut and not self.accept_cut:
            raise UserError(
                f"the shard {url} is incomplete: {found.cut}",
                "copy it again, or read what is left of it with --accept-cut",
            )
        self._check_names(url, found)
        index = from_scan(found)
        keep, rejected = usable(index, bool((index.labels >= 0).any()), len(self.class_names))
        index = index.only(keep)
        placed = zip(index.labels.tolist(), index.offsets.tolist(), strict=True)
        samples = [Sample(index.key(i), label, images[offset]) for i, (label, offset) in enumerate(placed)]
        rejected += self._missing(unit, url, found)
        return OpenUnit(len(samples), lambda begin, end: samples[begin:end], rejected)

    def by_position(self) -> SeekableSource:
        raise UserError(f"shards on a server ({self.urls[0]} ...) can only be read from front to end", _HINT)

    def _missing(self, unit: Unit, url: str, found: Scan) -> list[Rejected]:
        """Return the samples lost by a cut. Raises UserError when a whole shard has another count than recorded."""
        count = _samples(found)
        if count == unit.count or len(found.found) == unit.count:
            return []
        if not found.cut or count > unit.count:
            raise UserError(f"{url} has {count:,} samples, but {unit.count:,} are recorded", "run the command again")
        return [Rejected(f"{unit.name}[{i}]", "cut", found.cut) for i in range(count, unit.count)]

    def _check_names(self, url: str, found: Scan) -> None:
        with self._lock:
            for label, name in found.names.items():
                other, said_by = self._names.setdefault(label, (name, url))
                if other != name:
                    text = f"the label {label} is {other!r} in {said_by} and {name!r} in {url}"
                    raise UserError(text, "use shards that were made together")


def is_url(path: str) -> bool:
    """Return True for scheme://..., False for a path."""
    return scheme_of(path) != ""


def expand_urls(urls: Sequence[str]) -> list[str]:
    """Expand URLs and brace patterns to shards; a URL that ends with a slash is a folder of shards."""
    return [
        shard for url in urls for one in expand_pattern(url) for shard in (_listed(one) if one[-1:] == "/" else [one])
    ]


def open_remote(urls: Sequence[str], accept_cut: bool = False, keep_counts: bool = True) -> RemoteShardSource:
    """Open shards on a server, in the order given.

    Args:
        accept_cut: take the whole samples of shards that were cut.
        keep_counts: save in the user's cache how many samples a shard holds, where that had to be counted.

    Raises:
        UserError: a shard is missing, can't be reached, isn't a tar, or is cut and `accept_cut` is False.
    """
    for url in urls:
        check_url(url)
    check_distinct(urls)
    counts = _counts(urls, keep_counts)
    units: list[Unit] = []
    first = 0
    for url in urls:
        if counts[url]:
            units.append(Unit(len(units), first, counts[url], url.rpartition("/")[2]))
        first += counts[url]
    if not units:
        raise UserError(
            f"no images in {urls[0]}" if len(urls) == 1 else f"no images in {len(urls)} shards ({urls[0]} ...)"
        )
    digest = hashlib.sha256("".join(f"{url}\0{counts[url]}\n" for url in urls).encode()).hexdigest()
    description = description_of(KIND, urls, first, digest)
    if accept_cut:
        description["accepted_cut_shards"] = list(urls)
    full = [url for url in urls if counts[url]]
    return RemoteShardSource(_class_names(urls), description, units, urls=full, accept_cut=accept_cut)


def _counts(urls: Sequence[str], keep: bool) -> dict[str, int]:
    """Return the number of samples of each shard, from files beside them, or by a pass over the shard."""
    counts: dict[str, int] = {}
    for folder in dict.fromkeys(url.rpartition("/")[0] for url in urls):
        names = [url.rpartition("/")[2] for url in urls if url.rpartition("/")[0] == folder]
        found = recorded_counts(names, partial(_beside, folder))
        counts |= {f"{folder}/{name}": count.samples for name, count in found.items()}
    left = [url for url in urls if url not in counts]
    return counts | dict(in_order(partial(_counted, keep=keep), left, min(len(left), _AT_ONCE), ahead=2 * _AT_ONCE))


def _beside(folder: str, name: str) -> bytes | None:
    return fetch(f"{folder}/{name}")


def _counted(url: str, keep: bool) -> int:
    """Return the number of samples of a shard without a recorded count."""
    kept = _cache_path(url)
    with _open(url) as stream:
        facts = {"url": url, "size": stream.file.size, "version": stream.file.version}
    try:
        record = json.loads(kept.read_bytes())
        if stream.file.version and {name: record.get(name) for name in facts} == facts:
            return int(record["samples"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    file, found = _scan(url)
    # The count of a cut shard is not saved: the upload may still be running.
    if not found.cut and file.version and keep:
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_json(kept, facts | {"samples": _samples(found)})
        except (OSError, UserError):
            pass  # without a cache, it is counted again next time
    return _samples(found)


def _scan(url: str, images: dict[int, bytes] | None = None) -> tuple[RemoteFile, Scan]:
    """Scan a shard; puts its images into `images`, by offset."""
    try:
        with _open(url) as stream:
            length = _ENDLESS if stream.file.size is None else stream.file.size
            collect = None if images is None else images.__setitem__
            return stream.file, scan(stream, length, collect=collect)  # type: ignore[arg-type]
    except BrokenTar as error:
        raise UserError(f"{url} is not a whole tar file: {error}", "compressed tars must be unpacked first") from error


@contextmanager
def _open(url: str) -> Iterator[RemoteStream]:
    try:
        with RemoteStream(url) as stream:
            yield stream
    except Gone as error:
        raise UserError(str(error), "check the address and your access") from error


def _samples(found: Scan) -> int:
    return len(found.found) + left_out(found.problems)


def _cache_path(url: str) -> Path:
    return user_cache() / "titokctl" / "remote-counts" / f"{hashlib.sha256(url.encode()).hexdigest()[:32]}.json"


def _class_names(urls: Sequence[str]) -> list[str]:
    """Return the class names in our index.json beside the first shard."""
    record = _index_json(urls[0].rpartition("/")[0])
    names = record.get("class_names") if record else None
    return [str(name) for name in names] if isinstance(names, list) else []


def _listed(url: str) -> list[str]:
    """Return the shards of a folder on a server: those in its index.json, or from a listing."""
    record = _index_json(url.rstrip("/"))
    if record and isinstance(record.get("shards"), list):
        return [f"{url}{shard['name']}" for shard in record["shards"] if isinstance(shard, dict) and "name" in shard]
    if scheme_of(url) in ("http", "https"):
        raise UserError(f"{url} can't be listed", "name the shards, e.g. https://host/train-{0000..0146}.tar")
    check_url(url)
    file_system, path = file_system_of(url)
    names = sorted(str(name).rpartition("/")[2] for name in file_system.glob(f"{path.rstrip('/')}/*.tar"))
    if not names:
        raise UserError(f"no .tar shards in {url}")
    return [f"{url}{name}" for name in names]


def _index_json(folder: str) -> dict[str, Any] | None:
    check_url(f"{folder}/")
    try:
        record = json.loads(fetch(f"{folder}/index.json") or b"null")
    except ValueError:
        return None
    return record if isinstance(record, dict) and record.get("format") == "titokctl/shards" else None
