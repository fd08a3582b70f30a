"""Compiling and activation checkpointing of a tokenizer: the same losses, other costs."""

import shutil

import numpy as np
import pytest
import torch

from titokctl.config.models import TokenizerConfig, TransformerConfig
from titokctl.config.training import TrainingConfig
from titokctl.models.initialization import initialize
from titokctl.models.precision import training_attention
from titokctl.models.titok.tokenizer import TiTok
from titokctl.training.acceleration import accelerate

VIT = TransformerConfig(patch_size=8, width=32, num_layers=2, num_heads=2)


def gradients(**options):
    """Of all weights after one backward pass, and how many bytes it kept."""
    torch.manual_seed(0)
    config = TokenizerConfig(image_size=32, num_latent_tokens=4, encoder=VIT, decoder=VIT, codebook_size=8)
    tokenizer = TiTok(config).train()
    initialize(tokenizer)
    before = set(tokenizer.state_dict())
    accelerate([tokenizer.encoder, tokenizer.decoder], TrainingConfig(steps=1, global_batch_size=2, **options))
    assert set(tokenizer.state_dict()) == before
    kept = {}
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(id(t), t), lambda t: t)
    images = torch.rand(2, 3, 32, 32)
    # As the stages of training call it: the choice of the attention's kernel ends before the backward pass.
    with hooks, training_attention("cpu"):
        loss = tokenizer.decode(tokenizer.quantizer(tokenizer.encode(images)).vectors).square().mean()
    loss.backward()
    return {n: p.grad for n, p in tokenizer.named_parameters() if p.grad is not None}, sum(
        t.nbytes for t in kept.values()
    )


def test_recomputed_blocks_give_the_same_gradients_and_keep_less():
    (plain, plain_bytes), (again, again_bytes) = gradients(), gradients(activation_checkpointing=True)
    assert len(plain) > 50
    assert all(torch.equal(plain[name], again[name]) for name in plain)
    assert again_bytes < plain_bytes / 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute:UserWarning")
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_networks_give_nearly_the_same_gradients():
    plain, compiled = gradients()[0], gradients(compile=True)[0]
    for name in plain:
        np.testing.assert_allclose(compiled[name], plain[name], rtol=1e-3, atol=1e-7)
