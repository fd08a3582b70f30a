"""MaskGIT-VQGAN at sizes nobody published."""

import pytest
import torch

from titokctl.config.models import VqganConfig
from titokctl.models.initialization import initialize
from titokctl.models.vqgan.vqgan import MaskGitVqgan, ProxyPixels

CONFIG = VqganConfig(channels=16, channel_multipliers=(1, 2, 2), num_res_blocks=1, codebook_size=30, token_size=8)


@pytest.fixture(scope="module")
def vqgan() -> MaskGitVqgan:
    torch.manual_seed(0)
    module = MaskGitVqgan(CONFIG)
    initialize(module)
    return module.eval()


def test_any_size(vqgan):
    """Two halvings: 24 x 40 pixels are 6 x 10 codes."""
    with torch.inference_mode():
        codes = vqgan.codes(torch.rand(2, 3, 24, 40))
        assert codes.shape == (2, 6, 10)
        assert codes.dtype == torch.int64
        assert vqgan.decode(codes).shape == (2, 3, 24, 40)


def test_pixels_of_certain_logits_are_those_of_the_code(vqgan):
    """When all weight is on one code, the mixture is that code's vector."""
    pixels = ProxyPixels(CONFIG)
    pixels.codebook, pixels.decoder = vqgan.codebook, vqgan.decoder
    codes = torch.randint(30, (1, 4, 4))
    logits = torch.full((1, 16, 30), -1e4).scatter_(-1, codes.view(1, 16, 1), 1e4)
    with torch.inference_mode():
        torch.testing.assert_close(pixels(logits), vqgan.decode(codes))
