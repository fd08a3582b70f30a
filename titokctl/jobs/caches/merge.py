"""`titokctl merge`: concatenate the rows of several caches."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from titokctl import __version__
from titokctl.config.differences import flat_differences
from titokctl.context import Context
from titokctl.errors import UserError
from titokctl.formats.replacing import CACHE, files_to_delete
from titokctl.formats.token_cache import PLAIN, TokenCache
from titokctl.formats.token_cache_writer import TokenCacheWriter
from titokctl.formats.token_header import CacheHeader
from titokctl.formats.token_keys import Keys
from titokctl.formats.unfinished import Unfinished, check_output, finished_already
from titokctl.jobs.plan import WritePlan, cache_bytes

_ROWS_AT_ONCE = 1 << 16
# Fields that may differ: the rows' origins, and the hash of the decoder, which may have been fine-tuned later.
_FREE = ("source", "created_by", "num_rejected", "weights_sha256", "terms")


@dataclass(frozen=True)
class Merged:
    """The cache that was written, and the number of rows of each input."""

    output: Path
    rows: int
    rows_of_inputs: list[int]
    sha256: str


@dataclass(frozen=True)
class Merge:
    """Write the rows of all caches `paths`, in this order, into the cache `output`.

    Args:
        paths: token caches made by one tokenizer with the same settings.
        output: the file to make.
        compress: deflate its rows.
        overwrite: replace a file at `output`.
    """

    paths: Sequence[Path]
    output: Path
    compress: bool = False
    overwrite: bool = False

    def plan(self, context: Context) -> WritePlan:
        """Return what would be written. Raises UserError when the output exists, or the caches' settings differ."""
        caches = self._open()
        total, header = sum(map(len, caches)), _header(caches)
        finished = Unfinished(self.output).is_finished(self._settings(caches), self.overwrite)
        return WritePlan(
            reads={"tokens": [str(path) for path in self.paths], "rows": [len(cache) for cache in caches]},
            output=self.output,
            count=total,
            unit="rows",
            done=total if finished else 0,
            num_bytes=None if self.compress else cache_bytes(header, total, self._key_bytes()),
            settings={"tokens_a_row": header.num_latent_tokens, "views": [PLAIN, *header.views]},
            removes=() if finished else files_to_delete(self.output),
        )

    def run(self, context: Context) -> Merged:
        """Write the cache. Raises as `plan`; Stopped after a signal, with nothing written."""
        caches, progress = self._open(), context.progress
        total, work, settings = sum(map(len, caches)), Unfinished(self.output), self._settings(caches)
        if work.is_finished(settings, self.overwrite):
            context.say(finished_already(self.output))
            return self._result(caches)
        progress.start("merge", total, "rows")
        sizes = {"num_rows": total, "key_bytes": self._key_bytes()}
        with (
            work.at_once(settings) as product,
            TokenCacheWriter(product, _header(caches), **sizes, compress=self.compress) as writer,
        ):
            for cache in caches:
                append_rows(writer, cache, context)
        progress.close()
        return self._result(caches)

    def _result(self, caches: list[TokenCache]) -> Merged:
        rows = [len(cache) for cache in caches]
        return Merged(self.output, sum(rows), rows, TokenCache.open(self.output, check_ids=False).sha256)

    def _settings(self, caches: list[TokenCache]) -> dict[str, Any]:
        return {"command": "merge", "caches": [cache.sha256 for cache in caches], "compress": self.compress}

    def _open(self) -> list[TokenCache]:
        check_output(self.output, self.overwrite, CACHE)
        caches = [TokenCache.open_whole(path) for path in self.paths]
        for cache in caches[1:]:
            changes = flat_differences(_decisive(caches[0]), _decisive(cache))
            if changes:
                raise UserError(
                    f"{cache.path} does not fit {caches[0].path}: {'; '.join(changes)}",
                    "merge caches made by one tokenizer with the same settings",
                )
        return caches

    def _key_bytes(self) -> int:
        return sum(len(keys_of(path).data) for path in self.paths)


def append_rows(writer: TokenCacheWriter, cache: TokenCache, context: Context) -> None:
    """Write all rows of `cache`, with their labels, keys and views. Raises Stopped after a signal."""
    keys = keys_of(cache.path)
    for first in range(0, len(cache), _ROWS_AT_ONCE):
        rows = slice(first, first + _ROWS_AT_ONCE)
        views = {name: np.asarray(cache.view(name)[rows]) for name in cache.views if name != PLAIN}
        writer.append(np.asarray(cache.rows[rows]), cache.labels[rows], keys[rows], views)
        cache.release()
        context.progress.advance(len(cache.labels[rows]))
        context.stop.check()


def keys_of(path: Path) -> Keys:
    """Return the keys of one cache, read again because the keys of all inputs together may not fit into memory."""
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
