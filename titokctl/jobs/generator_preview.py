"""Pictures while a generator trains: samples of the averaged weights, the same labels and noise every time."""

from dataclasses import dataclass
from pathlib import Path

import torch

from titokctl.config.recipe import GeneratorRecipe
from titokctl.config.sampling import SamplingConfig
from titokctl.data.images import to_bytes
from titokctl.errors import UserError
from titokctl.formats.picture import grid, save_png
from titokctl.formats.token_cache import TokenCache
from titokctl.jobs.chain import tokenizer_with
from titokctl.models.maskgit.generator import MaskGit
from titokctl.models.titok.tokenizer import TiTok
from titokctl.progress import Progress
from titokctl.sampling.decoding import decode_ids
from titokctl.weights.hashes import encoder_sha256
from titokctl.weights.load import load_tokenizer

_COLUMNS, _ROWS = 8, 4


@dataclass
class Preview:
    """Draws a grid of samples into `folder` as samples-<step>.png."""

    tokenizer: TiTok
    sampling: SamplingConfig
    num_classes: int
    folder: Path = Path()

    def into(self, folder: Path) -> "Preview":
        """The same, writing into `folder`."""
        return Preview(self.tokenizer, self.sampling, self.num_classes, folder)

    def __call__(self, generator: MaskGit, step: int) -> None:
        """Called by the task after some steps, with the averaged generator in evaluation mode."""
        device = self.tokenizer.latent_tokens.device
        images = torch.arange(_COLUMNS * _ROWS, device=device)
        labels = images * self.num_classes // len(images) if self.num_classes else None
        pixels = self.tokenizer.detokenize(decode_ids(generator, labels, self.sampling, images))
        save_png(self.folder / f"samples-{step:08d}.png", grid(to_bytes(pixels).cpu().numpy(), _COLUMNS))


def make_preview(
    given: str | None,
    cache: TokenCache,
    path: Path,
    recipe: GeneratorRecipe,
    runs: Path,
    device: str,
    progress: Progress,
) -> Preview | None:
    """Previews with the tokenizer named by the user, or the one found by its hash; None where there is none.

    Raises UserError when the named one did not make the cache.
    """
    header = cache.header
    try:
        found = tokenizer_with(header.encoder_sha256, header.weights_sha256, given, runs, progress.say)
        tokenizer = load_tokenizer(found, device=device)
    except UserError as error:
        if given is not None:
            raise
        progress.say(f"no pictures of samples on the way: {error.message}")
        return None
    ours = encoder_sha256(tokenizer)
    if ours != header.encoder_sha256:
        raise UserError(
            f"{path} was made by another tokenizer than {found}: encoder {header.encoder_sha256[:12]}, not {ours[:12]}",
            "name the tokenizer that made it with --tokenizer, or leave that out",
        )
    return Preview(tokenizer, recipe.sampling, recipe.model.num_classes)
