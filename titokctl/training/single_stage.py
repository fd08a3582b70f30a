"""Single-stage training of a tokenizer: pixels from the first step (TA-TiTok, arXiv 2501.07730, without text).

Letters: b images of a micro batch, K latent tokens, C token size, S image size.
"""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from titokctl.config.tokenizer_recipe import SingleRecipe
from titokctl.distributed.group import Group
from titokctl.models.device import send
from titokctl.models.precision import precision
from titokctl.models.titok.quantizers import QuantizerOutput
from titokctl.models.titok.tokenizer import TiTok
from titokctl.training.adversary import Adversary
from titokctl.training.codebook import live_codebook
from titokctl.training.decoder_stage import FixedCodes, freeze_encoder
from titokctl.training.image_stage import ImageBatches, ImageStage, Made, Micro
from titokctl.training.pixel_loss import PixelLoss
from titokctl.training.randomness import generator


class SingleStage(ImageStage[TiTok]):
    """The task of `stage: single`; arguments as of ImageStage."""

    def __init__(
        self,
        tokenizer: TiTok,
        recipe: SingleRecipe,
        images: ImageBatches,
        pixel_loss: PixelLoss,
        validate: Callable[[TiTok, int], dict[str, float]] | None,
        group: Group,
        adversary: Adversary | None = None,
    ) -> None:
        self.tokenizer, self.recipe, self.pixel_loss = tokenizer, recipe, pixel_loss
        self._codes: FixedCodes | None = None  # once the encoder is settled
        self._drawn: tuple[int, torch.Tensor] | None = None  # a step and its noise
        codebook = live_codebook(tokenizer, recipe, group)
        parts = [tokenizer.encoder, tokenizer.decoder]
        super().__init__(tokenizer, parts, recipe, images, validate, group, codebook=codebook, adversary=adversary)

    def begin(self, step: int) -> None:
        """Settle the encoder when its time has come."""
        if step == self.recipe.encoder_steps:
            # From here on ids don't change: all weights take their averages, and the decoder learns for what is kept.
            self.tokenizer.load_state_dict(self.learner.averaged())
            self._settle()

    def make(self, micro: Micro) -> Made:
        """Encode, quantize and decode, and what that costs."""
        if self._codes is not None and self.quantizes(micro.step):
            return self._decoded(micro, *self._codes(micro.images))
        with precision(self.training.precision, self.device):
            latents = self.tokenizer.encode(micro.images)  # (b, K, C)
            quantized = self._quantized(latents, micro)
            vectors = quantized.vectors if quantized else self._on_sphere(latents)
            made = self.tokenizer.decode(vectors).float()  # (b, 3, S, S)
        config = self.recipe.loss
        loss, shown = self.pixel_loss(made, micro.images, micro.step)
        if quantized is not None:
            of_codes = quantized.codebook_loss + quantized.commitment_loss
            loss = loss + config.quantizer_weight * of_codes + config.kl_weight * quantized.kl
            shown |= (
                {"quantizer_loss": of_codes.detach()} if quantized.ids is not None else {"kl": quantized.kl.detach()}
            )
        if self.adversary is not None:
            loss = loss + self.adversary.loss(made, micro.step)
        if quantized is None or quantized.ids is None:
            return Made(loss, shown, made)
        return Made(loss, shown, made, latents.float().flatten(0, 1), quantized.ids.flatten())

    def latents(self, images: torch.Tensor) -> torch.Tensor:
        """(b, 3, S, S) to (b x K, C), as codes are compared with them."""
        with precision(self.training.precision, self.device):
            latents = self.tokenizer.encode(images).float()
        return self._on_sphere(latents).flatten(0, 1)

    def cares_for_codes(self, step: int) -> bool:
        """Not once the encoder is settled."""
        return super().cares_for_codes(step) and not self._is_settled(step)

    def load(self, tensors: dict[str, torch.Tensor], step: int) -> None:
        """Continue from a checkpoint."""
        super().load(tensors, step)
        if self._is_settled(step):
            self._settle()

    def _settle(self) -> None:
        freeze_encoder(self.tokenizer)
        self._codes = FixedCodes(self.tokenizer)

    def _decoded(self, micro: Micro, vectors: torch.Tensor, ids: torch.Tensor | None) -> Made:
        """Decode the vectors (b, K, C) of a settled encoder; only pixels cost anything."""
        with precision(self.training.precision, self.device):
            made = self.tokenizer.decode(vectors).float()  # (b, 3, S, S)
        loss, shown = self.pixel_loss(made, micro.images, micro.step)
        if self.adversary is not None:
            loss = loss + self.adversary.loss(made, micro.step)
        return Made(loss, shown, made, None, None if ids is None else ids.flatten())

    def _is_settled(self, step: int) -> bool:
        return self.recipe.encoder_steps is not None and step >= self.recipe.encoder_steps

    def _quantized(self, latents: torch.Tensor, micro: Micro) -> QuantizerOutput | None:
        """None while latents go on as they are; the noise of a Gaussian bottleneck belongs to the step and the row."""
        if not self.recipe.model.is_discrete:
            return self.tokenizer.quantizer(latents, send(self._noise(micro.step)[micro.rows], self.device))
        return self.tokenizer.quantizer(latents) if self.quantizes(micro.step) else None

    def _noise(self, step: int) -> torch.Tensor:
        """Return the noise of the global batch of `step`, (B, K, C) on the host; drawn once a step."""
        if self._drawn is None or self._drawn[0] != step:
            model, rows = self.recipe.model, self.training.global_batch_size
            draws = generator(self.training.seed, "bottleneck", step)
            shape = (rows, model.num_latent_tokens, model.token_size)
            self._drawn = (step, torch.randn(shape, generator=draws))
        return self._drawn[1]

    def _on_sphere(self, latents: torch.Tensor) -> torch.Tensor:
        return F.normalize(latents.float(), dim=-1) if self.recipe.model.normalize_codes else latents
