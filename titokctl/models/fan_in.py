"""Initial values for small models; those of `initialization` suit widths of 512 and more.

At width 128 a deviation of 0.02 makes every block nearly zero: a small tokenizer then shows its mean colour for
hundreds of steps. Here a linear layer starts with deviation 1/sqrt(inputs), images are centred before the first
layer, and the last convolution starts as the identity on the mean colour.
"""

import torch
from torch import nn

from titokctl.models.generator import Generator
from titokctl.models.initialization import initialize
from titokctl.models.titok.decoder import PixelHead
from titokctl.models.titok.tokenizer import TiTok

_HEAD_DEVIATION = 0.02
_TABLE_SCALE = 4.0  # positions must be distinct before anything else can be learned
_TABLES = ("positional_embedding", "latent_tokens")


@torch.no_grad()
def initialize_fan_in(module: TiTok | Generator, pixel_mean: float = 0.5) -> None:
    """Initialize all weights of `module` in place, with draws from torch's default generator.

    Args:
        module: a tokenizer or a generator; the layer `head` of a generator, if it has one, starts near zero.
        pixel_mean: mean of the training images in [0, 1]; only tokenizers use it.
    """
    initialize(module)
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear) and not name.endswith("qkv"):
            nn.init.trunc_normal_(part.weight, std=part.in_features**-0.5)
        elif isinstance(part, nn.Embedding):
            nn.init.trunc_normal_(part.weight, std=part.embedding_dim**-0.5)
    if isinstance(module, TiTok):
        _center(module, pixel_mean)
    elif isinstance(head := getattr(module, "head", None), nn.Linear):
        nn.init.trunc_normal_(head.weight, std=_HEAD_DEVIATION)


def _center(tokenizer: TiTok, pixel_mean: float) -> None:
    """Centre the encoder's input, start the decoder at the mean colour, and enlarge the tables of positions."""
    for name, table in tokenizer.named_parameters():
        if name.endswith(_TABLES):
            table.mul_(_TABLE_SCALE)
    patches = tokenizer.encoder.patch_embed
    patches.bias.copy_(-pixel_mean * patches.weight.flatten(1).sum(1))
    head = tokenizer.decoder.head
    if isinstance(head, PixelHead):
        nn.init.trunc_normal_(head.to_pixels.weight, std=_HEAD_DEVIATION)
        nn.init.dirac_(head.smooth.weight)
        if head.smooth.bias is not None:
            nn.init.constant_(head.smooth.bias, pixel_mean)
