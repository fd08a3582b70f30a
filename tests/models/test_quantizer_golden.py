"""Quantizer losses and the KL term against the official numbers."""

import numpy as np
import pytest
import torch
from golden import golden

from titokctl.config.models import TokenizerConfig, TransformerConfig
from titokctl.models.titok import quantizers

VIT = TransformerConfig(patch_size=8, width=16, num_layers=1, num_heads=1)


def quantizer(**settings):
    config = TokenizerConfig(image_size=16, num_latent_tokens=16, encoder=VIT, decoder=VIT, token_size=8, **settings)
    return quantizers.build(config)


@pytest.mark.parametrize(("case", "normalize"), [("vq_plain", False), ("vq_l2", True)])
def test_vector_quantizer(case, normalize):
    numbers = np.load(golden("losses.npz"))
    vq = quantizer(codebook_size=64, normalize_codes=normalize)
    with torch.no_grad():
        vq.codebook.copy_(torch.from_numpy(numbers[f"{case}_codebook"]))
    out = vq(torch.from_numpy(numbers[f"{case}_z"]).squeeze(2).mT)
    assert np.array_equal(out.ids.numpy(), numbers[f"{case}_ids"][:, 0])
    assert out.commitment_loss.item() == pytest.approx(float(numbers[f"{case}_commitment"]), rel=1e-5)
    assert out.codebook_loss.item() == pytest.approx(float(numbers[f"{case}_codebook_loss"]), rel=1e-5)
    np.testing.assert_allclose(
        out.vectors.detach().mT.unsqueeze(2).numpy(), numbers[f"{case}_quantized"], rtol=1e-4, atol=1e-5
    )


def test_kl():
    numbers = np.load(golden("losses.npz"))
    parameters = torch.from_numpy(numbers["kl_params"])  # (B, 2C, 1, K)
    gaussian = quantizer(quantizer="gaussian", codebook_size=None)
    kl = gaussian(parameters.squeeze(2).mT).kl
    assert kl.item() == pytest.approx(float(numbers["kl"]), rel=1e-5)
