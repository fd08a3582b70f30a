"""Held-out numbers of a tokenizer while it is trained, and a picture to look at."""

from pathlib import Path

import torch

from titokctl.data.images import to_bytes, to_float
from titokctl.data.sources.source import Source
from titokctl.data.training_images import TrainingImages
from titokctl.evaluation.reconstruction import ReconstructionSums, codebook_usage
from titokctl.formats.picture import grid, save_png
from titokctl.models.titok.tokenizer import TiTok
from titokctl.models.vqgan.vqgan import MaskGitVqgan

_PICTURED = 8
_VALIDATION_BATCH = 64


class Validation:
    """Held-out numbers and a picture: the same images every time, each exactly once.

    Args:
        source: the held-out images.
        size: edge in pixels.
        folder: where pictures go, reconstructions-<step>.png.
    """

    def __init__(self, source: Source, size: int, folder: Path) -> None:
        self._images = TrainingImages(source, size, crop="center", flip=False, seed=0)
        self._folder = folder

    def __call__(self, tokenizer: TiTok | MaskGitVqgan, step: int) -> dict[str, float]:
        """PSNR in dB (pooled over all images), SSIM, and the share of codes in use."""
        sums, ids = ReconstructionSums(), []
        pictured: list[torch.Tensor] = []
        for first in range(0, len(self._images), _VALIDATION_BATCH):
            positions = range(first, min(first + _VALIDATION_BATCH, len(self._images)))
            pixels = self._images.batch([0] * len(positions), positions)
            tokens, made = _reconstruct(tokenizer, pixels)
            sums.add(pixels.numpy(), made.numpy())
            ids.append(tokens)
            pictured = pictured or [pixels[:_PICTURED], made[:_PICTURED]]
        picture = grid(torch.cat(pictured).numpy(), columns=len(pictured[0]))
        save_png(self._folder / f"reconstructions-{step:08d}.png", picture)
        return _numbers(sums, torch.cat(ids), tokenizer)


def _numbers(sums: ReconstructionSums, tokens: torch.Tensor, tokenizer: TiTok | MaskGitVqgan) -> dict[str, float]:
    score = sums.score()
    found = {"val_psnr": score.psnr_pooled}
    if score.ssim is not None:
        found["val_ssim"] = score.ssim
    if tokenizer.config.codebook_size is not None:
        usage = codebook_usage(tokens.numpy(), tokenizer.config.codebook_size)
        found |= {"val_codebook_usage": usage.share, "val_perplexity": usage.perplexity}
    return found


@torch.inference_mode()
def _reconstruct(tokenizer: TiTok | MaskGitVqgan, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What `tokenize` gives for uint8 `pixels` (B, S, S, 3), and the decoded pixels of it in the same form."""
    tokens = tokenizer.tokenize(to_float(pixels).to(next(tokenizer.parameters()).device))
    return tokens.cpu(), to_bytes(tokenizer.detokenize(tokens)).cpu()
