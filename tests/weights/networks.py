"""Small networks with fixed random weights, for tests of files."""

import torch

from titokctl.config.models import GeneratorConfig, TokenizerConfig, TransformerConfig
from titokctl.models.initialization import initialize
from titokctl.models.maskgit.generator import MaskGit
from titokctl.models.titok.tokenizer import TiTok

VIT = TransformerConfig(patch_size=8, width=24, num_layers=2, num_heads=2)
TOKENIZER = TokenizerConfig(
    image_size=16, num_latent_tokens=4, encoder=VIT, decoder=VIT, codebook_size=10, token_size=3
)
GENERATOR = GeneratorConfig(
    num_latent_tokens=4, codebook_size=10, num_classes=3, width=16, num_layers=2, num_heads=2, mlp_width=24
)


def tiny_tokenizer(seed: int = 0) -> TiTok:
    torch.manual_seed(seed)
    tokenizer = TiTok(TOKENIZER)
    initialize(tokenizer)
    return tokenizer.eval()


def tiny_generator(seed: int = 0) -> MaskGit:
    torch.manual_seed(seed)
    generator = MaskGit(GENERATOR)
    initialize(generator)
    return generator.eval()
