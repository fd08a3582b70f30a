"""Stage 1: a tokenizer learns to predict the codes that a VQGAN gives the same crop, no pixels yet.

Source: the TiTok paper, section 3.3 (arXiv 2406.07550). Letters: b images of a micro batch, N places of the grid of
proxy codes, K latent tokens, C token size, S image size.
"""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from titokctl.config.tokenizer_recipe import ProxyRecipe
from titokctl.distributed.group import Group
from titokctl.models.precision import precision
from titokctl.models.titok.tokenizer import TiTok
from titokctl.models.vqgan.vqgan import MaskGitVqgan
from titokctl.training.acceleration import accelerate
from titokctl.training.codebook import live_codebook
from titokctl.training.image_stage import ImageBatches, ImageStage, Made, Micro
from titokctl.training.kept_codes import KeptCodes
from titokctl.training.losses import proxy_cross_entropy
from titokctl.weights.store import with_pixel_decoder


class ProxyStage(ImageStage[TiTok]):
    """The task of `stage: proxy`; arguments as of ImageStage.

    `vqgan` gives the codes and is never changed; held-out pictures are what its decoder makes of predicted codes.
    `kept` has the codes of crops that were seen before, if they are kept.
    """

    def __init__(
        self,
        tokenizer: TiTok,
        recipe: ProxyRecipe,
        images: ImageBatches,
        vqgan: MaskGitVqgan,
        validate: Callable[[TiTok, int], dict[str, float]] | None,
        group: Group,
        kept: KeptCodes | None = None,
    ) -> None:
        self.tokenizer, self.recipe, self.kept = tokenizer, recipe, kept
        self.vqgan = vqgan.eval().requires_grad_(False)
        accelerate([self.vqgan.encoder], recipe.training)
        codebook = live_codebook(tokenizer, recipe, group)
        parts = [tokenizer.encoder, tokenizer.decoder]
        super().__init__(tokenizer, parts, recipe, images, validate, group, codebook=codebook)

    def make(self, micro: Micro) -> Made:
        """Logits over the proxy codes of the images, and what they cost."""
        codes = self._proxy_codes(micro)  # (b, N)
        quantized = None
        with precision(self.training.precision, self.device):
            latents = self.tokenizer.encode(micro.images)  # (b, K, C)
            if self.quantizes(micro.step):
                quantized = self.tokenizer.quantizer(latents)
            vectors = quantized.vectors if quantized else self._on_sphere(latents)
            logits = self.tokenizer.decode_proxy_logits(vectors)  # (b, N, proxy codes)
        entropy = proxy_cross_entropy(logits, codes)
        shown = {"cross_entropy": entropy.detach(), "accuracy": (logits.argmax(-1) == codes).float().mean()}
        if quantized is None:
            return Made(entropy, shown)
        of_codes = quantized.codebook_loss + quantized.commitment_loss
        loss, shown["quantizer_loss"] = entropy + self.recipe.loss.quantizer_weight * of_codes, of_codes.detach()
        return Made(loss, shown, None, latents.float().flatten(0, 1), quantized.ids.flatten())

    def latents(self, images: torch.Tensor) -> torch.Tensor:
        """(b, 3, S, S) to (b x K, C), as codes are compared with them."""
        with precision(self.training.precision, self.device):
            return self._on_sphere(self.tokenizer.encode(images).float()).flatten(0, 1)

    def evaluate(self, step: int) -> dict[str, float]:
        """Held-out numbers with the averaged weights, in pixels by the VQGAN's own decoder."""
        if self.validate is None:
            return {}
        return self.validate(with_pixel_decoder(self.averaged(), self.vqgan), step)

    @torch.no_grad()
    def _proxy_codes(self, micro: Micro) -> torch.Tensor:
        """(b, 3, S, S) to (b, N): outside autocast, since an image's codes are near each other."""
        known = self.kept.read(micro) if self.kept is not None else None
        if known is not None:
            return known
        with precision("float32" if self.training.precision == "float32" else "tf32", self.device):
            codes = self.vqgan.codes(micro.images).flatten(1)
        if self.kept is not None:
            self.kept.keep(micro, codes)
        return codes

    def _on_sphere(self, latents: torch.Tensor) -> torch.Tensor:
        return F.normalize(latents.float(), dim=-1) if self.recipe.model.normalize_codes else latents
