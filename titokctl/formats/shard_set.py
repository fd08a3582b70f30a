"""A folder of WebDataset shards with an index.json that lists its contents.

Specification: `<name>-000000.tar`, `<name>-000001.tar`, ... are tar files (POSIX, pax records only where a name needs
them; times 0, owner root, mode 0444, so that the same samples give the same bytes). A sample is
`<key>.<kind>`, the image file's own bytes, with its kind as in `file_kind` (jpg, png, webp, ...), and `<key>.cls`, its
class index in decimal, where it has a label; or, where more is known of it than a label, `<key>.json`, an object with
`label` and further fields. The key has no dot in its last part. `index.json` is an object with

    format, format_version   "titokctl/shards", 1
    shards                   [{"name", "samples", "bytes"}, ...] in order
    total                    samples in all shards
    class_names              a name per class index; [] when unknown

and further fields of its writer. Readers compare `samples` with the shards.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from titokctl.errors import UserError
from titokctl.formats.atomic import atomic_path, check_version, read_json, write_json
from titokctl.formats.shard_index import open_index

FORMAT = "titokctl/shards"
FORMAT_VERSION = 1
INDEX_NAME = "index.json"


@dataclass(frozen=True)
class ShardSample:
    """An image file to write into a shard; `extension` is one of file_kind.IMAGE_SUFFIXES, `label` is -1 for none.

    `metadata` are JSON values, with the label among them as `label`; they take the place of the class index.
    """

    key: str
    extension: str
    data: bytes
    label: int = -1
    metadata: Mapping[str, Any] | None = None

    def members(self) -> dict[str, bytes]:
        """Return the contents of the sample's files by extension."""
        if self.metadata is not None:
            return {self.extension: self.data, "json": json.dumps(self.metadata).encode()}
        label = {"cls": str(self.label).encode()} if self.label >= 0 else {}
        return {self.extension: self.data, **label}


@dataclass(frozen=True)
class ShardInfo:
    """The entry of one shard in index.json."""

    name: str
    samples: int
    bytes: int


def shard_name(prefix: str, number: int) -> str:
    """Return the file name of shard `number`."""
    return f"{prefix}-{number:06d}.tar"


def write_shard(path: Path, samples: Iterable[ShardSample]) -> ShardInfo:
    """Write one shard and its offset index, atomically; the same samples give the same bytes."""
    from webdataset import TarWriter  # imports torch: only where shards are written

    with (
        atomic_path(path) as temporary,
        temporary.open("wb") as file,
        TarWriter(file, encoder=False, mtime=0, user="root", group="root", format="PAX_FORMAT") as tar,
    ):
        for sample in samples:
            tar.write({"__key__": sample.key, **sample.members()})
    index = open_index(path)
    return ShardInfo(path.name, len(index), index.size)


def write_set_index(
    folder: Path, shards: Sequence[ShardInfo], class_names: Sequence[str], extra: dict[str, Any] | None = None
) -> None:
    """Write index.json of a folder of shards, atomically."""
    record: dict[str, Any] = {"format": FORMAT, "format_version": FORMAT_VERSION}
    record |= {"total": sum(s.samples for s in shards), "class_names": list(class_names)} | (extra or {})
    write_json(folder / INDEX_NAME, record | {"shards": [asdict(s) for s in shards]})


def read_set_index(folder: Path) -> dict[str, Any] | None:
    """Return the index.json of a folder of shards, or None if titokctl didn't write one there.

    Raises UserError when it is damaged or of a newer version.
    """
    path = folder / INDEX_NAME
    if not os.path.isfile(path):
        return None
    return checked_set_index(read_json(path), path)


def checked_set_index(record: Any, where: Path | str) -> dict[str, Any] | None:
    """Return the content of an index.json, or None if it is not one of titokctl.

    Raises UserError when it is damaged or of a newer version.
    """
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        return None
    check_version(record.get("format_version"), FORMAT_VERSION, where)
    names, shards = record.get("class_names"), record.get("shards")
    if not isinstance(names, list) or not isinstance(shards, list) or not all(_is_info(s) for s in shards):
        raise UserError(f"{where} is damaged: class_names or shards are malformed", "copy it again, or delete it")
    return record


def _is_info(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("name"), str) and isinstance(value.get("samples"), int)
