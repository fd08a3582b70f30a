"""What the rows of a token cache were made of: the images and the tokenizer."""

from pathlib import Path

import numpy as np

from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.data.images import preprocess
from titokctl.data.sources import Source
from titokctl.data.sources.opening import reopen_source
from titokctl.dry_run import is_dry_run
from titokctl.errors import UserError
from titokctl.formats.token_cache import TokenCache
from titokctl.models.titok.tokenizer import TiTok
from titokctl.weights.chain import Say, tokenizer_with
from titokctl.weights.hashes import encoder_sha256
from titokctl.weights.load import load_tokenizer


def tokenizer_of(cache: TokenCache, given: str | None, runs: Path, device: str, say: Say) -> TiTok:
    """The tokenizer that made `cache`, or another decoder of the same encoder.

    Raises UserError when it can't be found, or when `given` is another one.
    """
    head = cache.header
    name = tokenizer_with(head.encoder_sha256, head.weights_sha256, given, runs, say)
    model = load_tokenizer(name, device, fetch=not is_dry_run())
    if encoder_sha256(model) != head.encoder_sha256:
        raise UserError(
            f"{name} is another tokenizer than the one {cache.path} was made with", "name that one with --tokenizer"
        )
    return model


class Originals:
    """The images that the rows of a cache were made of.

    Raises UserError when the source is gone, has changed, or is not the one of the cache.
    """

    def __init__(self, cache: TokenCache, source: Source | None = None) -> None:
        recorded = cache.header.source
        if source is None:
            if not isinstance(recorded.get("paths"), list) or not recorded["paths"]:
                raise UserError(f"{cache.path} does not say which images it was made of")
            source = reopen_source(recorded, not is_dry_run())
        if source.description.get("fingerprint") != recorded.get("fingerprint"):
            where = source.description["paths"][0]
            raise UserError(f"the source {where} has changed since {cache.path} was made, or is another one")
        try:
            self._preprocessing = PreprocessingConfig.model_validate(cache.header.preprocessing)
        except ValueError as error:
            raise UserError(f"{cache.path} does not say how its images were cut") from error
        if self._preprocessing.size != cache.header.image_size:
            raise UserError(f"{cache.path} contradicts itself about the size of its images")
        self._source = source.by_position()
        is_whole = len(source) == len(cache)
        self._positions = None if is_whole else _positions(self._source.keys(), cache.keys.tolist())

    def pixels(self, rows: np.ndarray) -> np.ndarray:
        """The plain crops of `rows` (n,), as (n, S, S, 3) uint8."""
        samples = self._source.read_many(rows if self._positions is None else self._positions[rows])
        return np.stack([preprocess(sample.data, self._preprocessing) for sample in samples])


def _positions(source_keys: list[str], row_keys: list[bytes]) -> np.ndarray:
    """Where each row's image stands in a source of which some images have no row; both are in the same order."""
    places, positions = enumerate(source_keys), []
    for row, wanted in enumerate(map(bytes.decode, row_keys)):
        found = next((place for place, key in places if key == wanted), None)
        if found is None:
            raise UserError(f"the image {wanted} of row {row} is not in the source")
        positions.append(found)
    return np.array(positions, np.int64)
