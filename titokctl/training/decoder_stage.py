"""Stage 2: a tokenizer that predicts proxy codes learns to make pixels of them, while its ids stay as they are.

Source: the TiTok paper, section 3.3 (arXiv 2406.07550). Letters: b images of a micro batch, K latent tokens, S size.
"""

from collections.abc import Callable

import torch

from titokctl.config.tokenizer_recipe import DecoderRecipe
from titokctl.distributed.group import Group
from titokctl.models.inference import encoding_precision, prepared
from titokctl.models.precision import precision
from titokctl.models.titok.tokenizer import TiTok
from titokctl.training.adversary import Adversary
from titokctl.training.image_stage import ImageBatches, ImageStage, Made, Micro
from titokctl.training.pixel_loss import PixelLoss


def freeze_encoder(tokenizer: TiTok) -> None:
    """Leave only the layers behind the codes trainable; those that decide ids are frozen and in eval mode."""
    tokenizer.latent_tokens.requires_grad_(False)
    for fixed in (tokenizer.encoder, tokenizer.quantizer):
        fixed.requires_grad_(False).eval()


class FixedCodes:
    """The codes of images by a frozen encoder, in the precision and by the kernels that `tokenize` uses by default.

    Autocast would give other ids than those that are cached later.
    """

    def __init__(self, tokenizer: TiTok) -> None:
        self._device = tokenizer.latent_tokens.device
        self._precision = encoding_precision(self._device)
        self._prepared = prepared(tokenizer, self._device, self._precision, "encoder")

    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return what the decoder gets for images (b, 3, S, S): vectors (b, K, C), and ids (b, K) if there are any."""
        with precision(self._precision, self._device):
            found = self._prepared.tokenize_unchecked(images).clone()  # a normal tensor, not one of inference mode
            if not self._prepared.config.is_discrete:
                return found, None
            with torch.no_grad():
                return self._prepared.quantizer.vectors_of(found), found


class DecoderStage(ImageStage[TiTok]):
    """The task of `stage: decoder`: the ViT decoder, the VQGAN's codes and its decoder train together.

    Arguments as of ImageStage; `tokenizer` has the weights of stage 1 and a pixel decoder.
    """

    def __init__(
        self,
        tokenizer: TiTok,
        recipe: DecoderRecipe,
        images: ImageBatches,
        pixel_loss: PixelLoss,
        validate: Callable[[TiTok, int], dict[str, float]] | None,
        group: Group,
        adversary: Adversary | None = None,
    ) -> None:
        assert tokenizer.proxy_pixels is not None
        self.tokenizer, self.pixel_loss = tokenizer, pixel_loss
        freeze_encoder(tokenizer)
        self.codes = FixedCodes(tokenizer)
        parts = [tokenizer.decoder, tokenizer.proxy_pixels]
        super().__init__(tokenizer, parts, recipe, images, validate, group, adversary=adversary)

    def make(self, micro: Micro) -> Made:
        """Pixels from the ids of the images, and what they cost."""
        vectors, _ = self.codes(micro.images)  # (b, K, C)
        with precision(self.training.precision, self.device):
            made = self.tokenizer.decode(vectors).float()  # (b, 3, S, S)
        loss, shown = self.pixel_loss(made, micro.images, micro.step)
        if self.adversary is not None:
            loss = loss + self.adversary.loss(made, micro.step)
        return Made(loss, shown, made)

    def load(self, tensors: dict[str, torch.Tensor], step: int) -> None:
        """Continue from a checkpoint."""
        super().load(tensors, step)
        self.codes = FixedCodes(self.tokenizer)
