"""Single-stage training of a tokenizer: pixels from the first step (TA-TiTok, arXiv 2501.07730, without text).

Letters: B batch, K latent tokens, C token size, S image size.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch.nn import functional as F

from titokctl.config.recipe import TokenizerRecipe
from titokctl.distributed.group import Group
from titokctl.distributed.reduce import gathered, summed
from titokctl.models.precision import precision, training_attention
from titokctl.models.titok.quantizers import QuantizerOutput
from titokctl.models.titok.tokenizer import TiTok
from titokctl.training.acceleration import accelerate
from titokctl.training.codebook import kmeans, reseed
from titokctl.training.learner import Learner, part
from titokctl.training.loop import Metrics
from titokctl.training.randomness import generator

_KMEANS_ITERATIONS = 10
_LATENTS_PER_CODE = 16


class ImageBatches(Protocol):
    """Where training images come from."""

    def batch(self, step: int) -> torch.Tensor:
        """(b, 3, S, S) float32 in [0, 1]: this process's share of `step`'s batch, the same whenever it is asked for."""


class SingleStage:
    """The task of `stage: single`.

    Args:
        tokenizer: freshly initialised, in training mode, on its device.
        recipe: the resolved recipe.
        images: the training images.
        perceptual: (made, target) -> scalar, both (B, 3, S, S) in [0, 1]; None without a perceptual loss.
        validate: held-out numbers of an averaged tokenizer after some steps, or None.
        group: the processes that share each batch.
    """

    def __init__(
        self,
        tokenizer: TiTok,
        recipe: TokenizerRecipe,
        images: ImageBatches,
        perceptual: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None,
        validate: Callable[[TiTok, int], dict[str, float]] | None,
        group: Group,
    ) -> None:
        self.group = group
        self.tokenizer, self.recipe, self.images, self.validate = tokenizer, recipe, images, validate
        self.perceptual = perceptual
        training = recipe.training
        accelerate([tokenizer.encoder, tokenizer.decoder], training)
        self.learner = Learner(tokenizer, recipe.optimizer, recipe.schedule, training.steps, training.ema_decay, group)
        codes = recipe.model.codebook_size or 0
        reseeds = codes > 0 and recipe.codebook.reseed_decay is not None
        self.usage = torch.zeros(codes, device=self._device) if reseeds else None

    def prepare(self, step: int) -> None:
        """Fetch the images of `step`."""
        self._images = self.images.batch(step).to(self._device)

    def step(self, step: int) -> Metrics:
        """One optimizer step over the global batch, in micro batches."""
        if self.recipe.codebook.continuous_steps == step > 0:
            self._seed_codebook(step)
        if step == self.recipe.encoder_steps:
            self._settle_encoder()
        outputs = [self._micro_step(m, step) for m in self._images.split(self._micro_batch)]
        metrics = self.learner.update(step)
        if self._quantizes(step) and not self._is_settled(step) and self.recipe.model.is_discrete:
            self._reseed(torch.cat([o["latents"] for o in outputs]), torch.cat([o["ids"] for o in outputs]))
        mse = torch.stack([o["mse"] for o in outputs]).mean() / self.group.world_size
        loss = torch.stack([o["loss"] for o in outputs]).sum()
        total = summed({"loss": loss, "mse": mse}, self.group)
        return {"loss": total["loss"], "psnr": -10 * torch.log10(total["mse"]), **metrics}

    def evaluate(self, step: int) -> dict[str, float]:
        """Held-out numbers with the averaged weights."""
        if self.validate is None:
            return {}
        return self.validate(self.averaged(), step)

    def averaged(self) -> TiTok:
        """A copy of the tokenizer with the averaged weights, in evaluation mode."""
        return self.learner.averaged_module()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything a checkpoint needs."""
        own = {"usage": self.usage} if self.usage is not None else {}
        return {f"tokenizer.{k}": v for k, v in self.learner.tensors().items()} | own

    def load(self, tensors: dict[str, torch.Tensor], step: int) -> None:
        """Go on from a checkpoint."""
        self.learner.load(part(tensors, "tokenizer."), step)
        if self.usage is not None:
            self.usage.copy_(tensors["usage"])
        if self._is_settled(step):
            self._freeze_encoder()

    @property
    def _device(self) -> torch.device:
        return self.tokenizer.latent_tokens.device

    @property
    def _micro_batch(self) -> int:
        training = self.recipe.training
        return training.micro_batch_size or training.global_batch_size // self.group.world_size

    def _quantizes(self, step: int) -> bool:
        return step >= self.recipe.codebook.continuous_steps

    def _is_settled(self, step: int) -> bool:
        return self.recipe.encoder_steps is not None and step >= self.recipe.encoder_steps

    def _settle_encoder(self) -> None:
        """From here on ids don't change: all weights take their averages, and the decoder learns for what is kept."""
        self.tokenizer.load_state_dict(self.learner.averaged())
        self._freeze_encoder()

    def _freeze_encoder(self) -> None:
        for name, parameter in self.tokenizer.named_parameters():
            if not name.startswith(("decoder.", "proxy_pixels.")):
                parameter.requires_grad_(False)

    def _micro_step(self, images: torch.Tensor, step: int) -> dict[str, torch.Tensor]:
        share = len(images) / self.recipe.training.global_batch_size
        with precision(self.recipe.training.precision, self._device), training_attention(self._device):
            latents = self.tokenizer.encode(images)  # (b, K, C)
            quantized = self.tokenizer.quantizer(latents) if self._quantizes(step) else None
            vectors = quantized.vectors if quantized else self._on_sphere(latents)
            reconstruction = self.tokenizer.decode(vectors)  # (b, 3, S, S)
        losses = self._losses(reconstruction.float(), images, quantized, step)
        (losses["loss"] * share).backward()
        found = {"loss": losses["loss"].detach() * share, "mse": losses["mse"].detach()}
        if quantized is not None and quantized.ids is not None:
            found |= {"latents": latents.detach().float().flatten(0, 1), "ids": quantized.ids.flatten()}
        return found

    def _reseed(self, latents: torch.Tensor, ids: torch.Tensor) -> None:
        decay = self.recipe.codebook.reseed_decay
        if self.usage is None or decay is None:
            return
        codebook = self.tokenizer.quantizer.codebook.data
        before = codebook.clone(), self.usage.clone()
        latents, ids = gathered(latents, self.group), gathered(ids, self.group)
        reseed(codebook, self.usage, latents, ids, decay, self.recipe.model.normalize_codes)
        # A skipped step leaves the codes alone, too: its latents may be anything.
        for tensor, old in zip((codebook, self.usage), before, strict=True):
            tensor.copy_(torch.where(self.learner.is_finite, tensor, old))

    @torch.no_grad()
    def _seed_codebook(self, step: int) -> None:
        """k-means over the latents of the next batches gives the first codes."""
        codes = self.tokenizer.quantizer.codebook
        latents_per_step = self.recipe.training.global_batch_size * self.recipe.model.num_latent_tokens
        batches = -(-len(codes) * _LATENTS_PER_CODE // latents_per_step)
        found = [gathered(self._latents(self.images.batch(step + i)), self.group) for i in range(batches)]
        draws = generator(self.recipe.training.seed, "k-means", step)
        codes.data.copy_(kmeans(torch.cat(found), len(codes), _KMEANS_ITERATIONS, draws))
        if self.learner.ema is not None:
            self.learner.ema.shadow["quantizer.codebook"].copy_(codes)

    def _latents(self, images: torch.Tensor) -> torch.Tensor:
        pieces: Sequence[torch.Tensor] = images.to(self._device).split(self._micro_batch)
        with precision(self.recipe.training.precision, self._device):
            latents = torch.cat([self.tokenizer.encode(piece).float() for piece in pieces])
        return self._on_sphere(latents).flatten(0, 1)

    def _on_sphere(self, latents: torch.Tensor) -> torch.Tensor:
        return F.normalize(latents.float(), dim=-1) if self.recipe.model.normalize_codes else latents

    def _losses(
        self, made: torch.Tensor, images: torch.Tensor, quantized: QuantizerOutput | None, step: int
    ) -> dict[str, torch.Tensor]:
        config = self.recipe.loss
        mse = F.mse_loss(made, images)
        pixels = mse if config.reconstruction == "l2" else F.l1_loss(made, images)
        loss = config.reconstruction_weight * pixels
        if self.perceptual is not None and step >= config.perceptual_start:
            loss = loss + config.perceptual_weight * self.perceptual(made, images)
        if quantized is not None:
            loss = loss + config.quantizer_weight * (quantized.codebook_loss + quantized.commitment_loss)
            loss = loss + config.kl_weight * quantized.kl
        return {"loss": loss, "mse": mse}
