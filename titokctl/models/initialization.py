"""Initial values of all weights, as in the official training code.

Source: bytedance/1d-tokenizer, commit 942a96f.
"""

import torch
from torch import nn

from titokctl.models.titok.transformer import Block

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
