"""The origins of a token cache's rows: their images and their tokenizer."""

import os
import stat
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.context import Context
from titokctl.data.images import preprocess
from titokctl.data.sources import Source
from titokctl.data.sources.opening import reopen_source
from titokctl.data.sources.source import difference
from titokctl.errors import UserError
from titokctl.formats.token_cache import TokenCache
from titokctl.models.titok.tokenizer import TiTok
from titokctl.weights.chain import tokenizer_with
from titokctl.weights.hashes import encoder_sha256
from titokctl.weights.load import load_tokenizer

RECORDED = "recorded"
_MOST_PATHS = 100_000
_LONGEST_PATH = 4096


def tokenizer_of(cache: TokenCache, given: str | None, context: Context, fetch: bool = True) -> TiTok:
    """Load the tokenizer that made `cache`, or one with the same encoder and another decoder.

    Args:
        given: a run, file or name; None to find it by its hash.
        fetch: download a released tokenizer that isn't on this machine.

    Raises UserError when it isn't found, or when `given` has another encoder.
    """
    head = cache.header
    name = tokenizer_with(head.encoder_sha256, head.weights_sha256, given, context.runs, context.say)
    model = load_tokenizer(name, context.device, fetch=fetch)
    if encoder_sha256(model) != head.encoder_sha256:
        raise UserError(
            f"{cache.path} was made with another tokenizer than {name}", "name the right one with --tokenizer"
        )
    return model


def open_to_look(path: Path, context: Context) -> TokenCache:
    """Open a cache for a command that makes no product of it; damage is reported as a warning."""
    cache = TokenCache.open(path)
    wrong = cache.damage(lambda rows: context.stop.check())
    if wrong:
        context.progress.warn(
            f"{path} is damaged: {wrong[0]} since it was written; `titokctl verify` lists all changes"
        )
    return cache


def source_named(named: str, cache: TokenCache, context: Context, keep_index: bool = True) -> Source:
    """Open the images that the user names, or with "recorded" those that the cache records.

    A cache of unknown origin may record anything, so only files, folders and http addresses are taken from it: no
    pattern, pipe, device, or other scheme.

    Args:
        context, keep_index: as for `open_source`.

    Raises UserError when the source can't be opened, or the cache records none that may be.
    """
    if named != RECORDED:
        return reopen_source(cache.header.source, keep_index, named, context)
    recorded, where = cache.header.source, f"the source that {cache.path} records"
    paths = recorded.get("paths")
    if not isinstance(paths, list) or not paths:
        raise UserError(f"{cache.path} does not record which images it was made from", "name them with --source")
    if len(paths) > _MOST_PATHS:
        raise UserError(f"{where} has {len(paths):,} paths, more than {_MOST_PATHS:,}", "name it with --source")
    folders = recorded.get("folders", [])
    if not isinstance(folders, list) or len(folders) > len(paths):
        raise UserError(f"{where} has folders that are not a list of its paths", "name it with --source")
    for path in (*paths, *folders, *(recorded[name] for name in ("labels", "label_table") if name in recorded)):
        _check_plain(path, where)
    if not isinstance(recorded.get("kind", ""), str):
        raise UserError(f"{where} has a kind that is not text", "name it with --source")
    return reopen_source(recorded, keep_index, context=context)


def _check_plain(path: object, where: str) -> None:
    if not isinstance(path, str) or not path or "\0" in path or len(path) > _LONGEST_PATH:
        raise UserError(f"{where} has a path that is not text", "name it with --source")
    if path.startswith(("http://", "https://")) and not set("{}*[]\n ") & set(path):
        return
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a path"
        raise UserError(f"{where} can't be opened: {path[:200]}: {reason}", "name it with --source") from error
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise UserError(f"{where} is not opened: {path} is not a file or folder", "name it with --source")


class Originals:
    """The images that the rows of a cache were made from.

    Args:
        cache: the token cache.
        source: the images.
        is_named: the user named them, so that other paths and times than the recorded ones are expected.

    Raises UserError when the source has changed, or is another one.
    """

    def __init__(self, cache: TokenCache, source: Source, is_named: bool = True) -> None:
        recorded = cache.header.source
        if (changed := difference(recorded, source.description, moved=is_named)) is not None:
            where = source.description["paths"][0]
            raise UserError(f"{cache.path} was made from other images than {where} holds now: {changed}")
        try:
            self._preprocessing = PreprocessingConfig.model_validate(cache.header.preprocessing)
        except ValueError as error:
            raise UserError(f"{cache.path} records no valid preprocessing of its images") from error
        if self._preprocessing.size != cache.header.image_size:
            raise UserError(
                f"{cache.path} records two image sizes: {self._preprocessing.size} and {cache.header.image_size}"
            )
        self._source = source.by_position()
        is_whole = len(source) == len(cache)
        self._positions = None if is_whole else _positions(self._source.keys(), cache.keys)

    def pixels(self, rows: np.ndarray) -> np.ndarray:
        """Return the plain crops of `rows` (n,), as (n, S, S, 3) uint8."""
        samples = self._source.read_many(rows if self._positions is None else self._positions[rows])
        return np.stack([preprocess(sample.data, self._preprocessing) for sample in samples])


def _positions(source_keys: list[str], row_keys: Iterable[bytes]) -> np.ndarray:
    """Return each row's position in a source that also holds images without a row; both are in the same order."""
    remaining, positions = enumerate(source_keys), []
    for row, wanted in enumerate(map(bytes.decode, row_keys)):
        found = next((position for position, key in remaining if key == wanted), None)
        if found is None:
            raise UserError(f"the image {wanted} of row {row} is not in the source")
        positions.append(found)
    return np.array(positions, np.int64)
