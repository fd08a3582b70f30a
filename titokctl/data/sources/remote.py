"""WebDataset shards on a server, each read once from front to end.

A unit is a whole shard, since a stream from a server can't be read by position. The number of samples per shard must
be known in advance: it comes from files beside the shards (`formats/shard_counts`), or a first pass counts the samples
and saves the number in the user's cache. It is checked when the shard is read, as is the version that the server gives
it (ETag or date). Addresses are used with their query, which may be a signature, and recorded without it.
"""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from titokctl.data.sources.choices import NO_CHOICES, Choices
from titokctl.data.sources.class_folders import read_classes
from titokctl.data.sources.shard_checks import check_distinct, left_out, usable, without_images, without_labels
from titokctl.data.sources.shards import expand_pattern
from titokctl.data.sources.source import (
    Counts,
    OpenUnit,
    Rejected,
    Sample,
    SeekableSource,
    Source,
    Unit,
    description_of,
)
from titokctl.data.workers import in_order
from titokctl.errors import UserError
from titokctl.formats.atomic import user_cache, write_json
from titokctl.formats.file_kind import HEAD_BYTES, kind_of
from titokctl.formats.gzip_stream import SHARD_SUFFIXES, GzipStream, is_compressed_name
from titokctl.formats.local_file import Identity
from titokctl.formats.remote_file import (
    Gone,
    RemoteFile,
    RemoteStream,
    check_url,
    fetch,
    file_system_of,
    folder_and_name,
    scheme_of,
    shown,
    sibling,
)
from titokctl.formats.shard_counts import recorded_counts
from titokctl.formats.shard_index import ShardIndex, from_scan, not_a_tar
from titokctl.formats.shard_scan import Keys, Scan, scan
from titokctl.formats.shard_set import INDEX_NAME, checked_set_index
from titokctl.formats.tar_headers import BrokenTar
from titokctl.readable import counted

KIND = "remote"
_ENDLESS = 1 << 62
_AT_ONCE = 8
_HINT = "copy the shards to a disk here, or make a token cache of them with titokctl tokenize"


@dataclass
class RemoteShardSource(Source):
    """Samples of shards on a server; a unit is a whole shard."""

    urls: list[str] = field(default_factory=list)
    accept_cut: bool = False
    keys: Keys = field(default_factory=Keys)
    use_labels: bool = True

    def __post_init__(self) -> None:
        self._names: dict[int, tuple[str, str]] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process needs. It learns the names of labels anew."""
        return {name: value for name, value in vars(self).items() if name not in ("_lock", "_names")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.__post_init__()

    def open_unit(self, unit: Unit) -> OpenUnit:
        """Read one shard.

        Raises UserError when it is cut, changed since the source was opened, or has another number of samples than
        recorded.
        """
        url = self.urls[unit.index]
        images: dict[int, bytes] = {}
        file, found = _scan(url, self.keys, images)
        if _state(file) != unit.state:
            raise UserError(f"{shown(url)} changed on the server", "run the same command again to read it anew")
        if found.cut and not self.accept_cut:
            raise UserError(
                f"the shard {shown(url)} is incomplete: {found.cut}",
                "copy it again, or read what is left of it with --accept-cut",
            )
        index = from_scan(found)
        if self.use_labels:
            self._check_names(shown(url), found)
            index = self._numbered(shown(url), index)
        else:
            index = without_labels(index)
        keep, rejected = usable(index, len(self.class_names))
        index = index.only(keep)
        placed = zip(index.labels.tolist(), index.offsets.tolist(), strict=True)
        samples = [Sample(index.key(i), label, images[offset]) for i, (label, offset) in enumerate(placed)]
        rejected += self._missing(unit, shown(url), found)
        counts = Counts(found.passed_over, found.label_files)
        return OpenUnit(len(samples), lambda begin, end: samples[begin:end], rejected, counts)

    def by_position(self) -> SeekableSource:
        raise UserError(f"shards on a server ({shown(self.urls[0])} ...) can only be read from front to end", _HINT)

    def _missing(self, unit: Unit, url: str, found: Scan) -> list[Rejected]:
        """Return the samples lost by a cut. Raises UserError when a whole shard has another count than recorded."""
        count = _samples(found)
        if count == unit.count or len(found.found) == unit.count:
            return []
        if not found.cut or count > unit.count:
            raise UserError(
                f"{url} has {counted(count, 'samples')}, but {unit.count:,} recorded", "run the command again"
            )
        return [Rejected(f"{unit.name}[{i}]", "cut", found.cut) for i in range(count, unit.count)]

    def _numbered(self, url: str, index: ShardIndex) -> ShardIndex:
        """Number labels that are names by their positions in the list of classes."""
        if not index.texts:
            return index
        number_of = {name: i for i, name in enumerate(self.class_names)}
        unknown = next((text for text in index.texts if text not in number_of), None)
        if unknown is not None:
            # Each shard is read alone, so no one knows the names in the others.
            what = f"{unknown!r} is not one of {len(number_of):,} classes" if number_of else f"such as {unknown!r}"
            hint = "name a text file with the names of all classes, one per line, with --classes FILE"
            raise UserError(f"the labels in {url} are names, {what}", hint)
        table = np.array([*(number_of[text] for text in index.texts), -1], np.int32)
        return replace(index, labels=table[index.labels], texts=[])

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
        shard
        for url in urls
        for one in expand_pattern(url)
        for shard in (_listed(one) if shown(one)[-1:] == "/" else [one])
    ]


def open_remote(
    urls: Sequence[str], accept_cut: bool = False, keep_counts: bool = True, choices: Choices = NO_CHOICES
) -> RemoteShardSource:
    """Open shards on a server, in the order given.

    Args:
        accept_cut: take the whole samples of shards that were cut.
        keep_counts: save in the user's cache how many samples a shard holds, where that had to be counted.
        choices: of members, and about labels.

    Raises:
        UserError: a shard is missing, can't be reached, isn't a tar, is without images, or is cut and `accept_cut` is
            False; the index.json beside them is damaged.
    """
    for url in urls:
        check_url(url)
    check_distinct([shown(url) for url in urls])
    class_names = read_classes(choices.classes) if choices.classes else []
    class_names = class_names or (_class_names(urls) if choices.use_labels else [])
    keys = Keys(choices.image_key, choices.label_key)
    states = dict(in_order(_described, urls, min(len(urls), _AT_ONCE), ahead=2 * _AT_ONCE))
    counts = _counts(urls, states, keys, keep_counts)
    units: list[Unit] = []
    first = 0
    for url in urls:
        if counts[url]:
            units.append(Unit(len(units), first, counts[url], folder_and_name(url)[1], _state(states[url])))
        first += counts[url]
    if not units:
        raise UserError(
            f"no images in {shown(urls[0])}"
            if len(urls) == 1
            else f"no images in {len(urls)} shards ({shown(urls[0])} ...)"
        )
    addresses = [shown(url) for url in urls]
    listing = "".join(f"{address}\0{counts[url]}\n" for address, url in zip(addresses, urls, strict=True))
    versions = "".join(f"{address}\0{_state(states[url])}\n" for address, url in zip(addresses, urls, strict=True))
    identity = Identity("", "", is_whole=False)
    description = description_of(KIND, addresses, first, _sha256(listing), identity, Counts())
    description["versions"] = _sha256(versions)
    if accept_cut:
        description["accepted_cut_shards"] = addresses
    if choices.record():
        description["choices"] = choices.record()
    full = [url for url in urls if counts[url]]
    return RemoteShardSource(
        class_names,
        description,
        units,
        urls=full,
        accept_cut=accept_cut,
        keys=keys,
        use_labels=choices.use_labels,
    )


def _described(url: str) -> RemoteFile:
    """Return what the server says about a shard."""
    with _open(url) as stream:
        return stream.file


def _state(file: RemoteFile) -> str:
    """Return a text that changes with the version of a file; "" if the server sends neither size nor version."""
    return f"{file.size} {file.version}" if file.version or file.size is not None else ""


def _counts(urls: Sequence[str], states: Mapping[str, RemoteFile], keys: Keys, keep: bool) -> dict[str, int]:
    """Return the number of samples of each shard, from files beside them, or by a pass over the shard."""
    counts: dict[str, int] = {}
    for folder in dict.fromkeys(folder_and_name(url)[0] for url in urls):
        here = {folder_and_name(url)[1]: url for url in urls if folder_and_name(url)[0] == folder}
        found = recorded_counts(list(here), partial(_beside, next(iter(here.values()))))
        counts |= {here[name]: count.samples for name, count in found.items()}
    left = [url for url in urls if url not in counts]

    def count(url: str) -> int:
        return _counted(url, states[url], keys, keep)

    return counts | dict(in_order(count, left, min(len(left), _AT_ONCE), ahead=2 * _AT_ONCE))


def _beside(url: str, name: str) -> bytes | None:
    return fetch(sibling(url, name))


def _counted(url: str, file: RemoteFile, keys: Keys, keep: bool) -> int:
    """Return the number of samples of a shard without a recorded count. Raises UserError if it has no images."""
    kept = _cache_path(url)
    facts = {"url": shown(url), "size": file.size, "version": file.version, "keys": [keys.image, keys.label]}
    try:
        record = json.loads(kept.read_bytes())
        if file.version and {name: record.get(name) for name in facts} == facts:
            return int(record["samples"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    _, found = _scan(url, keys)
    # The count of a cut shard is not saved: the upload may still be running.
    if not found.cut and file.version and keep:
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_json(kept, facts | {"samples": _samples(found)})
        except (OSError, UserError):
            pass  # without a cache, it is counted again next time
    return _samples(found)


def _scan(url: str, keys: Keys, images: dict[int, bytes] | None = None) -> tuple[RemoteFile, Scan]:
    """Scan a shard; puts its images into `images`, by offset. Raises UserError if it is not a tar with images."""
    try:
        with _open(url) as stream:
            collect = None if images is None else images.__setitem__
            if is_compressed_name(shown(url)):
                unpacked = GzipStream(lambda: stream, shown(url), accept_cut=True)
                found = scan(unpacked, _ENDLESS, collect=collect, keys=keys)  # type: ignore[arg-type]
                unpacked.seek(_ENDLESS)  # only its end shows that it is whole
                found.cut = found.cut or unpacked.cut
            else:
                length = _ENDLESS if stream.file.size is None else stream.file.size
                found = scan(stream, length, collect=collect, keys=keys)  # type: ignore[arg-type]
    except BrokenTar as error:
        raise not_a_tar(shown(url), error, _head(url)) from error
    if not found.found and not found.problems:
        if found.cut:
            head = _head(url)
            kind = kind_of(head)
            if kind is None or kind.name != "tar":
                raise not_a_tar(shown(url), BrokenTar(found.cut, cut=True), head)
            raise UserError(
                f"the shard {shown(url)} is incomplete: {found.cut}, before its first image", "copy it again"
            )
        raise without_images(shown(url), found.passed_over)
    return stream.file, found


def _head(url: str) -> bytes:
    with _open(url) as stream:
        return stream.read(HEAD_BYTES)


@contextmanager
def _open(url: str) -> Iterator[RemoteStream]:
    try:
        with RemoteStream(url) as stream:
            yield stream
    except Gone as error:
        raise UserError(str(error), "check the address and your access") from error


def _samples(found: Scan) -> int:
    return len(found.found) + left_out(found.problems)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _cache_path(url: str) -> Path:
    return user_cache() / "titokctl" / "remote-counts" / f"{_sha256(shown(url))[:32]}.json"


def _class_names(urls: Sequence[str]) -> list[str]:
    """Return the class names in our index.json beside the first shard."""
    record = _index_json(sibling(urls[0], INDEX_NAME))
    return [str(name) for name in record["class_names"]] if record else []


def _listed(url: str) -> list[str]:
    """Return the shards of a folder on a server: those in its index.json, or from a listing."""
    record = _index_json(sibling(url, INDEX_NAME))
    if record:
        return [sibling(url, shard["name"]) for shard in record["shards"]]
    if scheme_of(url) in ("http", "https"):
        raise UserError(f"{shown(url)} can't be listed", "name the shards, e.g. https://host/train-{0000..0146}.tar")
    check_url(url)
    file_system, path = file_system_of(url)
    found = [str(name) for suffix in SHARD_SUFFIXES for name in file_system.glob(f"{path.rstrip('/')}/*{suffix}")]
    names = sorted(name.rpartition("/")[2] for name in found)
    if not names:
        raise UserError(f"no .tar shards in {shown(url)}")
    return [f"{url}{name}" for name in names]


def _index_json(url: str) -> dict[str, Any] | None:
    """Return our index.json at `url`; None if there is none. Raises UserError when it is damaged."""
    check_url(url)
    data = fetch(url)
    kind = kind_of(data[:HEAD_BYTES]) if data else None
    if data is None or (kind is not None and kind.name in ("html", "xml")):
        return None  # some servers answer with a page instead of "not found"
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{shown(url)} is damaged: it is not JSON", "copy it to the server again") from error
    return checked_set_index(record, shown(url))
