"""Initial values of all weights: as in the official training code, and for small models.

The official ones suit widths of 512 and more. At width 128 a deviation of 0.02 makes every block nearly zero: a small
tokenizer then shows its mean colour for hundreds of steps. With `initialize_fan_in` a linear layer starts with
deviation 1/sqrt(inputs), images are centred before the first layer, and the last convolution starts as the identity on
the mean colour.

Source of the official ones: bytedance/1d-tokenizer, commit 942a96f.
"""

import torch
from torch import nn

from titokctl.models.generator import Generator
from titokctl.models.titok.tokenizer import TiTok
from titokctl.models.titok.vit import PixelHead
from titokctl.models.transformer import Block

_STANDARD_DEVIATION = 0.02
_AFFINE = (nn.Linear, nn.Conv2d, nn.Embedding)


@torch.no_grad()
def initialize(module: nn.Module) -> None:
    """Initialize all weights of `module` in place, with draws from torch's default generator.

    Linear, convolution and embedding weights are truncated normal (0.02), biases 0, norms 1 and 0; learned tables
    (class, position, latent and mask tokens) normal with D^-0.5; a codebook uniform within 1/V; the packed
    projections of TiTok's attention Xavier uniform.
    """
    for part in module.modules():
        if isinstance(part, _AFFINE):
            _truncated_normal(part)
        elif isinstance(part, nn.LayerNorm | nn.GroupNorm):
            part.reset_parameters()
        else:
            for name, parameter in part.named_parameters(recurse=False):
                _table(name, parameter)
    # After the loop above, which initializes these as linear layers.
    for part in module.modules():
        if isinstance(part, Block):
            nn.init.xavier_uniform_(part.attention.qkv.weight)


def _truncated_normal(part: nn.Module) -> None:
    nn.init.trunc_normal_(part.get_parameter("weight"), std=_STANDARD_DEVIATION)
    bias = getattr(part, "bias", None)
    if bias is not None:
        nn.init.zeros_(bias)


def _table(name: str, table: nn.Parameter) -> None:
    if name == "codebook":
        nn.init.uniform_(table, -1 / len(table), 1 / len(table))
    else:
        nn.init.normal_(table, std=table.shape[-1] ** -0.5)


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
