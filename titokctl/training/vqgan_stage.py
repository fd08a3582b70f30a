"""Training a proxy tokenizer: MaskGIT-VQGAN's architecture at any size, so that any pictures can have proxy codes.

Source: VQGAN (arXiv 2012.09841) without attention, as in MaskGIT (arXiv 2202.04200). Letters: b images of a micro
batch, h x w codes of an image, C token size, S image size.
"""

from collections.abc import Callable

import torch

from titokctl.config.tokenizer_recipe import VqganRecipe
from titokctl.distributed.group import Group
from titokctl.models.precision import precision
from titokctl.models.titok.quantizers import vector_quantize
from titokctl.models.vqgan.vqgan import MaskGitVqgan
from titokctl.training.adversary import Adversary
from titokctl.training.codebook import LiveCodebook
from titokctl.training.image_stage import ImageBatches, ImageStage, Made, Micro
from titokctl.training.pixel_loss import PixelLoss


class VqganStage(ImageStage[MaskGitVqgan]):
    """The task of `stage: vqgan`; arguments as of ImageStage."""

    def __init__(
        self,
        vqgan: MaskGitVqgan,
        recipe: VqganRecipe,
        images: ImageBatches,
        pixel_loss: PixelLoss,
        validate: Callable[[MaskGitVqgan, int], dict[str, float]] | None,
        group: Group,
        adversary: Adversary | None = None,
    ) -> None:
        self.vqgan, self.config, self.pixel_loss = vqgan, recipe.loss, pixel_loss
        codebook = LiveCodebook(vqgan, "codebook", recipe.codebook, False, group)
        parts = [vqgan.encoder, vqgan.decoder]
        super().__init__(vqgan, parts, recipe, images, validate, group, codebook=codebook, adversary=adversary)

    def make(self, micro: Micro) -> Made:
        """Encode, quantize and decode, and what that costs."""
        assert self.codebook is not None
        quantized = None
        with precision(self.training.precision, self.device):
            vectors = self.vqgan.encode(micro.images).movedim(1, -1)  # (b, h, w, C)
            latents = vectors.float().flatten(0, 2)
            if self.codebook.quantizes(micro.step):
                quantized = vector_quantize(vectors, self.vqgan.codebook, False, self.config.commitment_cost)
                vectors = quantized.vectors
            made = self.vqgan.decoder(vectors.movedim(-1, 1).contiguous()).float()  # (b, 3, S, S)
        loss, shown = self.pixel_loss(made, micro.images, micro.step)
        if self.adversary is not None:
            loss = loss + self.adversary.loss(made, micro.step)
        if quantized is None or quantized.ids is None:
            return Made(loss, shown, made)
        of_codes = quantized.codebook_loss + quantized.commitment_loss
        loss, shown["quantizer_loss"] = loss + self.config.quantizer_weight * of_codes, of_codes.detach()
        return Made(loss, shown, made, latents, quantized.ids.flatten())

    def latents(self, images: torch.Tensor) -> torch.Tensor:
        """(b, 3, S, S) to (b x h x w, C)."""
        with precision(self.training.precision, self.device):
            return self.vqgan.encode(images).movedim(1, -1).float().flatten(0, 2)
