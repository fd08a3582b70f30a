"""`titokctl merge`: concatenate the rows of several caches."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from titokctl import __version__
from titokctl.config.differences import flat_differences
from titokctl.context import Context
from titokctl.errors import UsageError, UserError
from titokctl.formats.object_store import StorePath, is_store, path_of
from titokctl.formats.replacing import CACHE, files_to_delete
from titokctl.formats.token_cache import PLAIN, TokenCache
from titokctl.formats.token_cache_writer import TokenCacheWriter
from titokctl.formats.token_folder import finish_folder
from titokctl.formats.token_header import CacheHeader, RowBlock
from titokctl.formats.token_parts import TokenPart
from titokctl.formats.token_store import StoredParts
from titokctl.formats.unfinished import Unfinished, check_output, finished_already, made_with_other_settings
from titokctl.jobs.plan import WritePlan, cache_bytes

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
        output: the file to make; or an address in an object store, where the cache is a folder of parts.
        compress: deflate the rows of the file.
        overwrite: replace a file at `output`.

    Raises UsageError for compressed parts.
    """

    paths: Sequence[Path]
    output: Path
    compress: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.compress and is_store(self.target):
            raise UsageError("--compress is for one file, not for a folder of parts", "leave it out")

    def plan(self, context: Context) -> WritePlan:
        """Return what would be written. Raises UserError when the output exists, or the caches' settings differ."""
        caches = self._open()
        total, header = sum(map(len, caches)), _header(caches)
        finished = self._is_finished(caches, header)
        return WritePlan(
            reads={"tokens": [str(path) for path in self.paths], "rows": [len(cache) for cache in caches]},
            output=self.target,
            count=total,
            unit="rows",
            done=total if finished else 0,
            num_bytes=None if self.compress else cache_bytes(header, total, _key_bytes(caches)),
            settings={"tokens_a_row": header.num_latent_tokens, "views": [PLAIN, *header.views]},
            removes=() if finished or is_store(self.target) else files_to_delete(self.target),
        )

    def run(self, context: Context) -> Merged:
        """Write the cache. Raises as `plan`; Stopped after a signal, with nothing written on a disk."""
        caches, progress, output = self._open(), context.progress, self.target
        header, total = _header(caches), sum(map(len, caches))
        if self._is_finished(caches, header):
            context.say(finished_already(output))
            return self._result(caches)
        progress.start("merge", total, "rows")
        if isinstance(output, StorePath):
            _write_parts(StoredParts(output), header, caches, context)
        else:
            sizes = {"num_rows": total, "key_bytes": _key_bytes(caches)}
            with (
                Unfinished(output).at_once(self._settings(caches)) as product,
                TokenCacheWriter(product, header, **sizes, compress=self.compress) as writer,
            ):
                for cache in caches:
                    append_rows(writer, cache, context)
        progress.close()
        return self._result(caches)

    @property
    def target(self) -> Path:
        """The file, or the address of the folder of parts, to make."""
        return path_of(self.output)

    def _is_finished(self, caches: list[TokenCache], header: CacheHeader) -> bool:
        """Return True if an earlier run made the output. Raises UserError when it was made with other settings."""
        target = self.target
        if not isinstance(target, StorePath):
            return Unfinished(target).is_finished(self._settings(caches), self.overwrite)
        folder = StoredParts(target)
        if not folder.is_complete():
            return False
        if changed := folder.differences(TokenCache.open(target, check_ids=False).header, header):
            raise made_with_other_settings(target, changed)
        return True

    def _result(self, caches: list[TokenCache]) -> Merged:
        rows = [len(cache) for cache in caches]
        return Merged(self.target, sum(rows), rows, TokenCache.open(self.target, check_ids=False).sha256)

    def _settings(self, caches: list[TokenCache]) -> dict[str, Any]:
        return {"command": "merge", "caches": [cache.sha256 for cache in caches], "compress": self.compress}

    def _open(self) -> list[TokenCache]:
        target = self.target
        if isinstance(target, StorePath):
            StoredParts(target).check_free(self.overwrite)
        else:
            check_output(target, self.overwrite, CACHE)
        caches = [TokenCache.open_whole(path) for path in self.paths]
        for cache in caches[1:]:
            changes = flat_differences(_decisive(caches[0]), _decisive(cache))
            if changes:
                raise UserError(
                    f"{cache.path} does not fit {caches[0].path}: {'; '.join(changes)}",
                    "merge caches made by one tokenizer with the same settings",
                )
        return caches


def _key_bytes(caches: Sequence[TokenCache]) -> int:
    return sum(cache.key_room for cache in caches)


def append_rows(writer: TokenCacheWriter, cache: TokenCache, context: Context) -> None:
    """Write all rows of `cache`, with their labels, keys and views. Raises Stopped after a signal."""
    for block in _blocks(cache, context):
        writer.append(block.rows, block.labels, block.keys, block.views)


def _blocks(cache: TokenCache, context: Context) -> Iterator[RowBlock]:
    for block in cache.blocks():
        yield block
        context.progress.advance(len(block.labels))
        context.stop.check()


def _write_parts(folder: StoredParts, header: CacheHeader, caches: Sequence[TokenCache], context: Context) -> None:
    """Write the rows as a folder of parts, a block a part. Parts that an earlier run wrote are found and kept."""
    folder.begin(header, 0)
    unit = first = 0
    blocks = (block for cache in caches for block in _blocks(cache, context))
    for unit, block in enumerate(blocks, start=1):
        count, keys = len(block.labels), np.array(block.keys.tolist())
        part = TokenPart(unit - 1, first, count, f"rows {first:,} on", block.rows, block.labels, keys, block.views)
        folder.write(part)
        first += count
    finish_folder(folder, header, unit, header.num_rejected, lambda rows: context.stop.check())


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
