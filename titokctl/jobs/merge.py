"""`titokctl merge`: the rows of several caches, one after the other, as one cache."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from titokctl import __version__
from titokctl.config.recipe_files import flat_differences
from titokctl.distributed.stop import StopRequest
from titokctl.dry_run import WritePlan, about_to_write
from titokctl.errors import UserError
from titokctl.formats.token_cache import PLAIN, TokenCache
from titokctl.formats.token_cache_writer import TokenCacheWriter
from titokctl.formats.token_header import CacheHeader
from titokctl.jobs.plans import cache_bytes
from titokctl.progress import Progress

_ROWS_AT_ONCE = 1 << 16
# What may differ: where the rows come from, and a decoder that was fine-tuned later.
_FREE = ("source", "created_by", "num_rejected", "weights_sha256", "terms")


@dataclass(frozen=True)
class Merged:
    """What was written, and from how many rows of each input."""

    output: Path
    rows: int
    rows_of_inputs: list[int]
    sha256: str


def merge(
    paths: Sequence[Path],
    output: Path,
    *,
    compress: bool = False,
    overwrite: bool = False,
    progress: Progress,
    stop: StopRequest,
) -> Merged:
    """Write the rows of all caches `paths`, in that order, into the cache `output`.

    Raises UserError when the output exists, or the caches don't fit each other.
    """
    if output.is_dir() or (output.exists() and not overwrite):
        raise UserError(f"{output} exists already", "choose another -o, or replace it with --overwrite")
    caches = [TokenCache.open(path) for path in paths]
    for cache in caches[1:]:
        changes = flat_differences(_decisive(caches[0]), _decisive(cache))
        if changes:
            raise UserError(
                f"{cache.path} does not fit {caches[0].path}: {'; '.join(changes)}",
                "merge caches of one tokenizer, made with the same settings",
            )
    total, header = sum(map(len, caches)), _header(caches)
    key_bytes = max(_keys(path).dtype.itemsize for path in paths)
    about_to_write(
        lambda: WritePlan(
            reads={"tokens": [str(path) for path in paths], "rows": [len(cache) for cache in caches]},
            output=output,
            count=total,
            unit="rows",
            num_bytes=None if compress else cache_bytes(header, total, key_bytes),
            settings={"tokens_a_row": header.num_latent_tokens, "views": [PLAIN, *header.views]},
            replaces=output.exists(),
        )
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    progress.start("merge", total, "rows")
    with TokenCacheWriter(output, header, num_rows=total, key_bytes=key_bytes, compress=compress) as writer:
        for cache in caches:
            keys = _keys(cache.path)
            for first in range(0, len(cache), _ROWS_AT_ONCE):
                rows = slice(first, first + _ROWS_AT_ONCE)
                views = {name: np.asarray(cache.view(name)[rows]) for name in cache.views if name != PLAIN}
                writer.append(np.asarray(cache.rows[rows]), cache.labels[rows], keys[rows], views)
                cache.release()
                progress.advance(len(keys[rows]))
                stop.check()
    progress.close()
    return Merged(output, total, [len(c) for c in caches], TokenCache.open(output, check_ids=False).sha256)


def _keys(path: Path) -> np.ndarray:
    """The keys of one cache; not kept with it, since those of all inputs together may be many."""
    return TokenCache.open(path, check_ids=False).keys


def _decisive(cache: TokenCache) -> dict[str, Any]:
    fields = {name: value for name, value in asdict(cache.header).items() if name not in _FREE}
    return dict(json.loads(json.dumps(fields)))


def _header(caches: Sequence[TokenCache]) -> CacheHeader:
    sources = [cache.header.source for cache in caches]
    rejected = [cache.header.num_rejected for cache in caches]
    source = {
        "kind": "merged",
        "paths": [str(cache.path.resolve()) for cache in caches],
        "num_samples": sum(map(len, caches)),
        "fingerprint": hashlib.sha256("".join(cache.sha256 for cache in caches).encode()).hexdigest(),
        "sources": sources,
    }
    known = [n for n in rejected if n is not None]
    return replace(
        caches[0].header,
        source=source,
        created_by=f"titokctl {__version__}",
        num_rejected=sum(known) if len(known) == len(rejected) else None,
        terms="; ".join(dict.fromkeys(cache.header.terms for cache in caches if cache.header.terms)),
    )
