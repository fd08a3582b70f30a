"""The origins of a token cache's rows: their images and their tokenizer."""

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


class Originals:
    """The images that the rows of a cache were made from.

    Args:
        cache: the token cache.
        source: the images; None for those at the recorded path.
        keep_index: store the index of the recorded source's shards beside them.

    Raises UserError when the source is missing, has changed, or is another one.
    """

    def __init__(self, cache: TokenCache, source: Source | None = None, keep_index: bool = True) -> None:
        recorded, is_named = cache.header.source, True
        if source is None:
            if not isinstance(recorded.get("paths"), list) or not recorded["paths"]:
                raise UserError(
                    f"{cache.path} does not record which images it was made from", "name them with --source"
                )
            source, is_named = reopen_source(recorded, keep_index), False
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
        self._positions = None if is_whole else _positions(self._source.keys(), cache.keys.tolist())

    def pixels(self, rows: np.ndarray) -> np.ndarray:
        """Return the plain crops of `rows` (n,), as (n, S, S, 3) uint8."""
        samples = self._source.read_many(rows if self._positions is None else self._positions[rows])
        return np.stack([preprocess(sample.data, self._preprocessing) for sample in samples])


def _positions(source_keys: list[str], row_keys: list[bytes]) -> np.ndarray:
    """Return each row's position in a source that also holds images without a row; both are in the same order."""
    remaining, positions = enumerate(source_keys), []
    for row, wanted in enumerate(map(bytes.decode, row_keys)):
        found = next((position for position, key in remaining if key == wanted), None)
        if found is None:
            raise UserError(f"the image {wanted} of row {row} is not in the source")
        positions.append(found)
    return np.array(positions, np.int64)
