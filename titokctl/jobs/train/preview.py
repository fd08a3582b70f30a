"""Previews of a generator in training: samples of the averaged weights, with the same labels and noise each time.

They have a row for each class; of many classes, 8 are shown that are spread over all.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from titokctl.config.recipe import GeneratorRecipe
from titokctl.config.sampling import GuidanceConfig
from titokctl.context import Context
from titokctl.data.images import to_bytes
from titokctl.errors import UserError
from titokctl.formats.picture import save_class_grid, save_grid
from titokctl.formats.token_cache import TokenCache, labelled_rows
from titokctl.models.generator import Generator
from titokctl.models.noise import KeyedNoise
from titokctl.models.titok.tokenizer import TiTok
from titokctl.weights.chain import tokenizer_with
from titokctl.weights.hashes import check_encoder, encoder_sha256
from titokctl.weights.load import load_tokenizer

_IMAGES, _COLUMNS, _MOST_CLASSES = 32, 8, 8


def make_preview(
    given: str | None,
    cache: TokenCache,
    path: Path,
    recipe: GeneratorRecipe,
    context: Context,
) -> Callable[[Path], Callable[[Generator, int], None]] | None:
    """Return a function from a folder to a function that draws previews there; None without a tokenizer.

    Args:
        given: the tokenizer that the user named; None finds it by its hash.
        cache, path: the token cache and where it is.
        recipe: the recipe, for its sampling settings.
        context: runs folder and device.

    Raises UserError when the named tokenizer did not make the cache.
    """
    header = cache.header
    try:
        found = tokenizer_with(header.encoder_sha256, header.weights_sha256, given, context.runs, context.say)
        tokenizer = load_tokenizer(found, device=context.device)
    except UserError as error:
        if given is not None:
            raise
        context.say(f"no previews during training: {error.message}")
        return None
    hint = "name the tokenizer that made it with --tokenizer, or leave --tokenizer out"
    check_encoder(str(path), header.encoder_sha256, found, encoder_sha256(tokenizer), hint)
    learnt = np.flatnonzero(labelled_rows(cache.labels)) if recipe.model.num_classes else np.empty(0, np.int64)
    classes = learnt[np.linspace(0, len(learnt) - 1, min(len(learnt), _MOST_CLASSES)).astype(np.int64)]
    labels = np.repeat(classes, min(_COLUMNS, _IMAGES // max(len(classes), 1)))
    return lambda folder: partial(_draw, folder, tokenizer, recipe.sampling, labels, cache.class_names)


def _draw(
    folder: Path,
    tokenizer: TiTok,
    sampling: GuidanceConfig,
    labels: np.ndarray,
    class_names: Sequence[str],
    generator: Generator,
    step: int,
) -> None:
    """Write samples of the averaged generator, which is in eval mode, as samples-<step>.png.

    One is drawn for each of `labels` (n,), or 32 where there are none.
    """
    images = torch.arange(len(labels) or _IMAGES, device=tokenizer.latent_tokens.device)
    wanted = torch.from_numpy(labels).to(images.device) if len(labels) else None
    pixels = to_bytes(tokenizer.detokenize(generator.sample(wanted, sampling, KeyedNoise(sampling.seed, images))))
    path, drawn = folder / f"samples-{step:08d}.png", pixels.cpu().numpy()
    if len(labels):
        save_class_grid(path, drawn, labels, class_names)
    else:
        save_grid(path, drawn, _COLUMNS)
