"""The loop of `sample` never makes the host wait for the device: it reads no value of a tensor."""

import pytest
import torch
import trained
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from titokctl.config.models import GeneratorConfig, TokenizerConfig
from titokctl.config.sampling import SamplingConfig
from titokctl.data.image_decoder import ImageDecoder
from titokctl.models.inference import prepared
from titokctl.models.maskgit.generator import MaskGit
from titokctl.models.noise import KeyedNoise
from titokctl.models.precision import Precision, precision
from titokctl.models.titok.tokenizer import TiTok
from titokctl.sampling.plan import Plan

TILE = 4


@pytest.mark.parametrize("name", ["float32", "bf16"])
@pytest.mark.parametrize("architecture", ["vit", "uvit"])
def test_shapes_are_known_without_values(name: Precision, architecture: str) -> None:
    """Fake tensors have a shape and no values, so that reading a value fails, as in every check of a range."""
    generator = MaskGit(
        GeneratorConfig(num_latent_tokens=trained.TOKENS, codebook_size=trained.CODES, num_classes=5, width=16,
                        num_layers=2, num_heads=2, mlp_width=32, architecture=architecture)
    )  # fmt: skip
    tokenizer = TiTok(
        TokenizerConfig(image_size=trained.SIZE, num_latent_tokens=trained.TOKENS, encoder=trained.vit(),
                        decoder=trained.vit(), codebook_size=trained.CODES, token_size=4)
    )  # fmt: skip
    ready, decoder = prepared(generator, "cpu", name), ImageDecoder(tokenizer, "cpu", name)
    plan = Plan(2 * TILE, (4, 0, 2), TILE)
    plan.labels(torch.arange(TILE))  # sent to the device once
    with FakeTensorMode(allow_non_fake_inputs=True), precision(name, "cpu"):
        for tile in plan.tiles():
            indices = tile.image_indices()
            ids = ready.sample(plan.labels(indices), SamplingConfig(num_steps=3), KeyedNoise(0, indices))
            images = decoder.images(ids)
        with pytest.raises(DataDependentOutputException):
            tokenizer.detokenize(ids)
    assert tuple(ids.shape) == (TILE, trained.TOKENS)
    assert tuple(images.shape) == (TILE, trained.SIZE, trained.SIZE, 3)
    assert images.dtype == torch.uint8
