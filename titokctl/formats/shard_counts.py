"""The number of samples per shard, as recorded by the tools that wrote the shards, in files beside them.

Known are `index.json` (ours, see shard_set), `_info.json` or `info.json` (timm: splits with filenames and
shard_lengths), `sizes.json` (open_clip: {shard: samples}) and `<shard>_stats.json` (img2dataset: successes). Files with
these names but another content are ignored. A compressed shard may be recorded under the name of the plain one. The
caller reads the files.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from titokctl.formats.gzip_stream import is_shard, plain_name

Read = Callable[[str], bytes | None]
_TIMM = ("_info.json", "info.json")
_OPEN_CLIP = "sizes.json"
_IMG2DATASET = "_stats.json"
_OURS = "index.json"


@dataclass(frozen=True)
class Count:
    """The number of samples in a shard, and the file that records it."""

    samples: int
    file: str


def is_about_shards(name: str) -> bool:
    """Return True for the name of a file beside shards that may record their counts."""
    return name in (_OURS, *_TIMM, _OPEN_CLIP) or name.endswith(_IMG2DATASET)


def recorded_counts(shards: Sequence[str], read: Read) -> dict[str, Count]:
    """Return the recorded counts by shard name; shards without one are missing.

    Args:
        shards: the file names of the shards in one folder.
        read: returns the content of a file in that folder, None when it doesn't exist.
    """
    found: dict[str, Count] = {}
    for file, of in ((_OURS, _of_ours), *((name, _of_timm) for name in _TIMM), (_OPEN_CLIP, _of_open_clip)):
        for shard, samples in of(_parsed(read(file))).items():
            found.setdefault(shard, Count(samples, file))
    found |= {shard: found[plain_name(shard)] for shard in shards if shard not in found and plain_name(shard) in found}
    left = [shard for shard in shards if shard not in found]
    # img2dataset writes one file per shard: if the first has none, the others are not tried.
    for i, shard in enumerate(left):
        file = f"{plain_name(shard).removesuffix('.tar')}{_IMG2DATASET}"
        record = _parsed(read(file))
        if isinstance(record, dict) and _is_count(record.get("successes")):
            found[shard] = Count(record["successes"], file)
        elif i == 0:
            break
    return {shard: found[shard] for shard in shards if shard in found}


def _parsed(data: bytes | None) -> Any:
    try:
        return None if data is None else json.loads(data)
    except (ValueError, RecursionError):
        return None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _of_ours(record: Any) -> dict[str, int]:
    shards = record.get("shards") if isinstance(record, dict) else None
    rows = shards if isinstance(shards, list) else []
    infos = [s for s in rows if isinstance(s, dict) and isinstance(s.get("name"), str) and _is_count(s.get("samples"))]
    return {s["name"]: s["samples"] for s in infos}


def _of_timm(record: Any) -> dict[str, int]:
    splits = record.get("splits") if isinstance(record, dict) else None
    found: dict[str, int] = {}
    for split in splits.values() if isinstance(splits, dict) else ():
        names, lengths = (split.get("filenames"), split.get("shard_lengths")) if isinstance(split, dict) else (0, 0)
        if isinstance(names, list) and isinstance(lengths, list) and len(names) == len(lengths):
            pairs = zip(names, lengths, strict=True)
            found |= {name.rpartition("/")[2]: n for name, n in pairs if isinstance(name, str) and _is_count(n)}
    return found


def _of_open_clip(record: Any) -> dict[str, int]:
    pairs = record.items() if isinstance(record, dict) else ()
    return {name: n for name, n in pairs if is_shard(name) and _is_count(n)}
