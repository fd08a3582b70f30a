"""How many operations a stage of training a tokenizer takes for an image, counted on the meta device.

Counted are the trained network, forward and backward, and the frozen parts in front of it; not perceptual networks,
the discriminator, what activation checkpointing computes twice, nor a VQGAN whose codes are kept.
"""

import torch
from torch.utils.flop_counter import FlopCounterMode

from titokctl.config.models import TokenizerConfig, VqganConfig
from titokctl.config.tokenizer_recipe import DecoderRecipe, ProxyRecipe, TokenizerRecipe, VqganRecipe
from titokctl.models.titok.tokenizer import TiTok
from titokctl.models.vqgan.vqgan import MaskGitVqgan


def operations_per_image(recipe: TokenizerRecipe) -> float:
    """Multiplications and additions of matrix products and convolutions."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        images = torch.empty(1, 3, recipe.image_size, recipe.image_size)
        if isinstance(recipe, VqganRecipe):
            _train_vqgan(recipe.model, images)
            return float(counter.get_total_flops())
        if isinstance(recipe, ProxyRecipe) and recipe.model.proxy is not None and not recipe.cached_crops:
            with torch.no_grad():
                MaskGitVqgan(recipe.model.proxy).encode(images)
        _train_titok(recipe.model, images, has_encoder=not isinstance(recipe, DecoderRecipe))
    return float(counter.get_total_flops())


def _train_vqgan(config: VqganConfig, images: torch.Tensor) -> None:
    vqgan = MaskGitVqgan(config)
    vqgan.decoder(vqgan.encode(images)).sum().backward()


def _train_titok(config: TokenizerConfig, images: torch.Tensor, has_encoder: bool) -> None:
    tokenizer = TiTok(config)
    with torch.set_grad_enabled(has_encoder):
        latents = tokenizer.encode(images)[..., : config.token_size]  # of a Gaussian bottleneck the means
    made = tokenizer.decode(latents) if config.pixel_decoder or config.head == "pixel" else tokenizer.decoder(latents)
    made.sum().backward()
