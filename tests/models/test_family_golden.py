"""Our networks against the official implementation's numbers, with weights given by formula."""

import numpy as np
import pytest
import torch
from golden import fill, golden, image

from titokctl.weights.known import BY_NAME
from titokctl.weights.official.layout import from_official, official_shapes
from titokctl.weights.store import Weights, build

TOLERANCE = 1e-4


def network(name: str):
    """A released model with the golden weights."""
    known = BY_NAME[name]
    shapes = official_shapes(known.kind, known.config)
    official = {key: torch.from_numpy(fill(key, shape)) for key, shape in shapes.items()}
    tensors = from_official(known.kind, known.config, official, name)
    return build(Weights(known.kind, known.config, tensors), name, "cpu", None)


def relative_error(found: torch.Tensor, expected: np.ndarray) -> float:
    """Norm of the difference over norm."""
    return float(np.linalg.norm(found.numpy() - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(
    ("name", "file"),
    [("titok-s-128", "tok_s128"), pytest.param("titok-bl-64-vq", "tok_bl64_vq8k", marks=pytest.mark.slow)],
)
def test_tokenizer(name, file):
    """Latents, tokens and pixels of a shuffled and of a plain bottleneck, of a proxy and of a pixel head."""
    expected = np.load(golden(f"{file}.npz"))
    tokenizer = network(name)
    images = torch.from_numpy(image(2))
    latents = tokenizer.latents(images)  # (2, K, C); theirs are (2, C, 1, K)
    assert relative_error(latents.mT.unsqueeze(2), expected["latents"]) < TOLERANCE
    assert (tokenizer.tokenize(images).numpy() == expected["tokens"]).mean() >= 0.99
    tokens = torch.from_numpy(expected["tokens"]).long()
    with torch.inference_mode():
        pixels = tokenizer.decode(tokenizer.quantizer.vectors_of(tokens))
    assert relative_error(pixels, expected["recon"]) < TOLERANCE
    assert torch.equal(tokenizer.detokenize(tokens), pixels.clamp(0, 1))


def test_proxy_tokenizer():
    """MaskGIT-VQGAN: hidden vectors, codes, and pixels from the codes."""
    expected = np.load(golden("maskgit_vqgan.npz"))
    vqgan = network("maskgit-vqgan")
    images = torch.from_numpy(image(1))
    with torch.inference_mode():
        assert relative_error(vqgan.encode(images), expected["hidden"]) < TOLERANCE
        codes = vqgan.codes(images)
        assert (codes.flatten(1).numpy() == expected["codes"]).mean() >= 0.99
        given = torch.from_numpy(expected["codes"]).long().view(1, 16, 16)
        assert relative_error(vqgan.decode(given), expected["recon"]) < TOLERANCE
