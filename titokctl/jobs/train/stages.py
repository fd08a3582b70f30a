"""From a recipe to the task that the training loop runs, and from what it made to a file of weights: by stage."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from titokctl.config.tokenizer_recipe import (
    AdversaryConfig,
    DecoderRecipe,
    PixelLossConfig,
    ProxyRecipe,
    SingleRecipe,
    TokenizerRecipe,
    VqganRecipe,
)
from titokctl.config.training import TrainingConfig
from titokctl.distributed.group import Group
from titokctl.distributed.reduce import summed
from titokctl.jobs.train.stage_start import Start
from titokctl.models.discriminator import Discriminator
from titokctl.models.fan_in import initialize_fan_in
from titokctl.models.initialization import initialize
from titokctl.models.titok.tokenizer import TiTok
from titokctl.models.vqgan.vqgan import MaskGitVqgan
from titokctl.training.adversary import Adversary
from titokctl.training.decoder_stage import DecoderStage
from titokctl.training.image_stage import ImageBatches, ImageStage
from titokctl.training.kept_codes import KeptCodes
from titokctl.training.pixel_loss import Perceptual, PixelLoss
from titokctl.training.proxy_stage import ProxyStage
from titokctl.training.randomness import key
from titokctl.training.single_stage import SingleStage
from titokctl.training.vqgan_stage import VqganStage
from titokctl.weights.hashes import encoder_sha256, weights_sha256
from titokctl.weights.perceptual import load_perceptual
from titokctl.weights.store import save_proxy, save_tokenizer

Validate = Callable[[Any, int], dict[str, float]]


@dataclass(frozen=True)
class Surroundings:
    """What every stage is built with."""

    images: ImageBatches
    validate: Validate | None
    device: str
    group: Group
    kept: KeptCodes | None = None  # of stage proxy


def run_kind(recipe: TokenizerRecipe) -> str:
    """The kind of run folder: a VQGAN is no tokenizer that other commands could take."""
    return "proxy" if isinstance(recipe, VqganRecipe) else "tokenizer"


def build_stage(recipe: TokenizerRecipe, start: Start, around: Surroundings) -> ImageStage[Any]:
    """The task of `recipe`, with first weights by its seed or from `start`.

    Raises UserError when the weights of a perceptual network are missing.
    """
    if isinstance(recipe, SingleRecipe):
        tokenizer = _first_tokenizer(recipe, around)
        return SingleStage(tokenizer, recipe, around.images, *_judges(recipe, around))
    if isinstance(recipe, VqganRecipe):
        return VqganStage(_first_vqgan(recipe, around), recipe, around.images, *_judges(recipe, around))
    if isinstance(recipe, ProxyRecipe):
        assert start.vqgan is not None
        tokenizer, vqgan = _first_tokenizer(recipe, around), start.vqgan.to(around.device)
        return ProxyStage(tokenizer, recipe, around.images, vqgan, around.validate, around.group, around.kept)
    assert start.tokenizer is not None
    tokenizer = start.tokenizer.to(around.device).train()
    return DecoderStage(tokenizer, recipe, around.images, *_judges(recipe, around))


def save_product(path: Path, trained: nn.Module, inputs: dict[str, Any]) -> dict[str, str]:
    """Write what a stage made as a file of weights; returns its hashes. `inputs` are what it started from."""
    extra = {"inputs": json.dumps(inputs)} if inputs else None
    if isinstance(trained, TiTok):
        save_tokenizer(path, trained, extra)
        return {"encoder_sha256": encoder_sha256(trained), "weights_sha256": weights_sha256(trained)}
    assert isinstance(trained, MaskGitVqgan)
    save_proxy(path, trained, extra)
    return {"weights_sha256": weights_sha256(trained)}


def _first_tokenizer(recipe: SingleRecipe | ProxyRecipe, around: Surroundings) -> TiTok:
    torch.manual_seed(key(recipe.training.seed, "initialization"))
    tokenizer = TiTok(recipe.model)
    if recipe.initialization == "fan-in":
        initialize_fan_in(tokenizer, pixel_mean=_pixel_mean(around))
    else:
        initialize(tokenizer)
    return tokenizer.to(around.device).train()


def _first_vqgan(recipe: VqganRecipe, around: Surroundings) -> MaskGitVqgan:
    """Convolutions as torch starts them, which suits any width, the last one at the mean colour; codes as elsewhere."""
    torch.manual_seed(key(recipe.training.seed, "initialization"))
    vqgan = MaskGitVqgan(recipe.model)
    bound = 1 / recipe.model.codebook_size
    nn.init.uniform_(vqgan.codebook, -bound, bound)
    assert vqgan.decoder.conv_out.bias is not None
    nn.init.constant_(vqgan.decoder.conv_out.bias, _pixel_mean(around))
    return vqgan.to(around.device).train()


def _pixel_mean(around: Surroundings) -> float:
    """Mean of the first batch."""
    share = around.images.batch(0).mean() / around.group.world_size
    return float(summed({"mean": share}, around.group)["mean"])


def _judges(
    recipe: SingleRecipe | VqganRecipe | DecoderRecipe, around: Surroundings
) -> tuple[PixelLoss, Validate | None, Group, Adversary | None]:
    """What tells a stage with pixels how good they are."""
    loss = _pixel_loss(recipe.loss, recipe.training, around.device)
    adversary = _adversary(recipe.adversary, recipe.training, around) if recipe.adversary else None
    return loss, around.validate, around.group, adversary


def _pixel_loss(config: PixelLossConfig, training: TrainingConfig, device: str) -> PixelLoss:
    """With the networks that the recipe names, in bf16 where it trains in it."""
    dtype = torch.float32 if training.precision == "float32" else torch.bfloat16
    networks: dict[str, Perceptual] = {name: load_perceptual(name, device, dtype) for name in config.perceptual}
    return PixelLoss(config, networks)


def _adversary(config: AdversaryConfig, training: TrainingConfig, around: Surroundings) -> Adversary:
    torch.manual_seed(key(training.seed, "discriminator"))
    discriminator = Discriminator(config.channels)
    initialize(discriminator)
    return Adversary(discriminator.to(around.device), config, training, around.group)
