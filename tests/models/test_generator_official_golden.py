"""Generators read through the official names, against the official logits: a swapped name would show here."""

import numpy as np
import pytest
import torch
from golden import fill, golden, keys

from titokctl.config.models import GeneratorConfig
from titokctl.weights.official.layout import from_official
from titokctl.weights.store import Weights, build


@pytest.mark.parametrize(("architecture", "case"), [("vit", "ViT_tiny"), ("uvit", "UViT_tiny")])
def test_logits(architecture, case):
    numbers = np.load(golden(f"gen_{case}.npz"))
    config = GeneratorConfig(
        architecture=architecture, num_latent_tokens=32, codebook_size=256, num_classes=1000, width=64, num_layers=4,
        num_heads=4, mlp_width=128,
    )  # fmt: skip
    official = {name: torch.from_numpy(fill(name, shape)) for name, shape in keys(f"gen_{case}").items()}
    tensors = from_official("generator", config, official, case)
    generator = build(Weights("generator", config, tensors), case, "cpu", None)
    ids, labels = (torch.from_numpy(numbers[name]).long() for name in ("ids", "labels"))
    with torch.inference_mode():
        for given, name in ((labels, "logits_cond"), (None, "logits_uncond")):
            difference = generator(ids, given).numpy() - numbers[name]
            assert np.linalg.norm(difference) < 1e-4 * np.linalg.norm(numbers[name])
