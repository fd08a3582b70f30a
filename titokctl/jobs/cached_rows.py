"""Rows of a token cache back to images, and the images they were made of."""

from pathlib import Path

import numpy as np
import torch

from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.data.images import preprocess, to_bytes
from titokctl.data.sources import Source
from titokctl.data.sources.opening import reopen_source
from titokctl.errors import UserError
from titokctl.formats.token_cache import TokenCache
from titokctl.jobs.chain import Say, tokenizer_with
from titokctl.models.titok.tokenizer import TiTok
from titokctl.weights.hashes import encoder_sha256
from titokctl.weights.load import load_tokenizer

_ROWS_AT_ONCE = 16


def tokenizer_of(cache: TokenCache, given: str | None, runs: Path, device: str, say: Say) -> TiTok:
    """The tokenizer that made `cache`, or another decoder of the same encoder.

    Raises UserError when it can't be found, or when `given` is another one.
    """
    head = cache.header
    name = tokenizer_with(head.encoder_sha256, head.weights_sha256, given, runs, say)
    model = load_tokenizer(name, device)
    if encoder_sha256(model) != head.encoder_sha256:
        raise UserError(
            f"{name} is another tokenizer than the one {cache.path} was made with", "name that one with --tokenizer"
        )
    return model


def decoded(model: TiTok, rows: np.ndarray) -> np.ndarray:
    """Rows (n, K) of ids, or (n, K, C) of latents, as images (n, S, S, 3) uint8."""
    device = model.latent_tokens.device
    images = []
    for first in range(0, len(rows), _ROWS_AT_ONCE):
        block = rows[first : first + _ROWS_AT_ONCE]
        wide = torch.from_numpy(block.astype(np.int64 if block.dtype.kind == "u" else np.float32))
        images.append(to_bytes(model.detokenize(wide.to(device))).cpu().numpy())
    return np.concatenate(images)


class Originals:
    """The images that the rows of a cache were made of.

    Raises UserError when the source is gone, has changed, or is not the one of the cache.
    """

    def __init__(self, cache: TokenCache, source: Source | None = None) -> None:
        recorded = cache.header.source
        if source is None:
            if not isinstance(recorded.get("paths"), list) or not recorded["paths"]:
                raise UserError(f"{cache.path} does not say which images it was made of")
            source = reopen_source(recorded)
        if source.description.get("fingerprint") != recorded.get("fingerprint"):
            where = source.description["paths"][0]
            raise UserError(f"the source {where} has changed since {cache.path} was made, or is another one")
        self.source, self._cache = source, cache
        self._positions: np.ndarray | None = None
        if len(source) != len(cache):
            self._positions = _positions(source.keys(), cache.keys.tolist())

    def pixels(self, rows: np.ndarray) -> np.ndarray:
        """The plain crops of `rows` (n,), as (n, S, S, 3) uint8."""
        config = PreprocessingConfig.model_validate(self._cache.header.preprocessing)
        positions = rows if self._positions is None else self._positions[rows]
        return np.stack([preprocess(s.data, config) for s in self.source.read_many(positions)])


def _positions(source_keys: list[str], row_keys: list[bytes]) -> np.ndarray:
    """Where each row's image stands in a source of which some images have no row; both are in the same order."""
    positions, at = np.empty(len(row_keys), np.int64), 0
    for row, key in enumerate(row_keys):
        wanted = key.decode()
        while at < len(source_keys) and source_keys[at] != wanted:
            at += 1
        if at == len(source_keys):
            raise UserError(f"the image {wanted} of row {row} is not in the source")
        positions[row] = at
        at += 1
    return positions
