"""The stages of training a tokenizer: build the task of a recipe, and save the trained network."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

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
from titokctl.formats.run_folder import RunFolder
from titokctl.jobs.train.stage_start import Start
from titokctl.models.discriminator import Discriminator
from titokctl.models.initialization import initialize, initialize_fan_in
from titokctl.models.precision import low_dtype
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
from titokctl.weights.adoption import adopt, freeze
from titokctl.weights.hashes import product_hashes
from titokctl.weights.perceptual import load_perceptual
from titokctl.weights.store import save_proxy, save_tokenizer

PixelRecipe = SingleRecipe | VqganRecipe | DecoderRecipe
M = TypeVar("M", bound=nn.Module)
Validate = Callable[[Any, int], dict[str, float]]


@dataclass(frozen=True)
class Parts:
    """The parts that each stage is built with."""

    images: ImageBatches
    validate: Validate | None
    device: str
    group: Group
    kept: KeptCodes | None = None  # of stage proxy


def run_kind(recipe: TokenizerRecipe) -> str:
    """Return the kind of run folder: a VQGAN has its own, since other commands can't use it as a tokenizer."""
    return "proxy" if isinstance(recipe, VqganRecipe) else "tokenizer"


def build_stage(recipe: TokenizerRecipe, start: Start, parts: Parts) -> ImageStage[Any]:
    """Build the task of `recipe`, with initial weights by its seed or from `start`.

    Raises UserError when the weights of a perceptual network are missing.
    """
    if isinstance(recipe, SingleRecipe):
        tokenizer = _first_tokenizer(recipe, start, parts)
        return SingleStage(tokenizer, recipe, parts.images, *_judges(recipe, parts))
    if isinstance(recipe, VqganRecipe):
        return VqganStage(_first_vqgan(recipe, start, parts), recipe, parts.images, *_judges(recipe, parts))
    if isinstance(recipe, ProxyRecipe):
        assert start.vqgan is not None
        tokenizer, vqgan = _first_tokenizer(recipe, start, parts), start.vqgan.to(parts.device)
        return ProxyStage(tokenizer, recipe, parts.images, vqgan, parts.validate, parts.group, parts.kept)
    assert start.tokenizer is not None
    tokenizer = start.tokenizer.to(parts.device).train()
    freeze(tokenizer, recipe.training.freeze)
    return DecoderStage(tokenizer, recipe, parts.images, *_judges(recipe, parts))


def save_product(run: RunFolder, trained: nn.Module, inputs: dict[str, Any], step: int) -> None:
    """Finish `run` with the network of a stage after `step` steps; `inputs` record what it started from."""
    extra = ({"inputs": json.dumps(inputs)} if inputs else {}) | {"step": str(step)}
    hashes = product_hashes(trained)
    product = run.product_name(hashes["weights_sha256"])
    if isinstance(trained, TiTok):
        save_tokenizer(run.path / product, trained, extra)
    else:
        assert isinstance(trained, MaskGitVqgan)
        save_proxy(run.path / product, trained, extra)
    run.finish(product, hashes, step)


def _first_tokenizer(recipe: SingleRecipe | ProxyRecipe, start: Start, parts: Parts) -> TiTok:
    torch.manual_seed(key(recipe.training.seed, "initialization"))
    tokenizer = TiTok(recipe.model)
    if recipe.initialization == "fan-in":
        initialize_fan_in(tokenizer, pixel_mean=_pixel_mean(parts))
    else:
        initialize(tokenizer)
    return _ready(tokenizer, recipe.training, start, parts)


def _first_vqgan(recipe: VqganRecipe, start: Start, parts: Parts) -> MaskGitVqgan:
    """Build a VQGAN: convolutions with torch's initial values, for any width, the last one at the mean colour."""
    torch.manual_seed(key(recipe.training.seed, "initialization"))
    vqgan = MaskGitVqgan(recipe.model)
    bound = 1 / recipe.model.codebook_size
    nn.init.uniform_(vqgan.codebook, -bound, bound)
    assert vqgan.decoder.conv_out.bias is not None
    nn.init.constant_(vqgan.decoder.conv_out.bias, _pixel_mean(parts))
    return _ready(vqgan, recipe.training, start, parts)


def _ready(module: M, training: TrainingConfig, start: Start, parts: Parts) -> M:
    """Put what fits of `start.init` into an initialised network, freeze parts of it, and move it to the device."""
    if start.init is not None:
        adopt(module, start.init)
    freeze(module, training.freeze)
    return module.to(parts.device).train()


def _pixel_mean(parts: Parts) -> float:
    """Return the mean of the first batch."""
    share = parts.images.batch(0).mean() / parts.group.world_size
    return float(summed({"mean": share}, parts.group)["mean"])


def _judges(recipe: PixelRecipe, parts: Parts) -> tuple[PixelLoss, Validate | None, Group, Adversary | None]:
    """Return the parts that judge the pixels of a stage: loss, held-out validation, group, and adversary."""
    loss = _pixel_loss(recipe.loss, parts.device)
    adversary = _adversary(recipe.adversary, recipe, parts) if recipe.adversary else None
    return loss, parts.validate, parts.group, adversary


def _pixel_loss(config: PixelLossConfig, device: str) -> PixelLoss:
    """Build the loss with the networks that the recipe names."""
    dtype = low_dtype(config.precision) or torch.float32
    networks: dict[str, Perceptual] = {name: load_perceptual(name, device, dtype) for name in config.perceptual}
    return PixelLoss(config, networks)


def _adversary(config: AdversaryConfig, recipe: PixelRecipe, parts: Parts) -> Adversary:
    torch.manual_seed(key(recipe.training.seed, "discriminator"))
    # It keeps torch's default initial values, as published: those of `initialize` make its gradients 8 times as large.
    discriminator = Discriminator(config.channels).to(parts.device)
    return Adversary(discriminator, config, recipe.training, parts.group, recipe.loss.precision)
