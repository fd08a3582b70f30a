"""Compiling, activation checkpointing and 16-bit residual streams: nearly the same losses, other costs."""

import shutil

import numpy as np
import pytest
import torch

from titokctl.config.models import (
    AutoregressiveConfig,
    GeneratorConfig,
    TokenizerConfig,
    TransformerConfig,
    VqganConfig,
)
from titokctl.config.tokenizer_recipe import AdversaryConfig
from titokctl.config.training import OptimizerConfig, ScheduleConfig, TrainingConfig
from titokctl.distributed.group import single_group
from titokctl.models.discriminator import Discriminator
from titokctl.models.generator_kinds import build
from titokctl.models.initialization import initialize
from titokctl.models.precision import precision
from titokctl.models.titok.tokenizer import TiTok
from titokctl.models.vqgan.vqgan import MaskGitVqgan
from titokctl.training.acceleration import accelerate
from titokctl.training.adversary import Adversary

VIT = TransformerConfig(patch_size=8, width=32, num_layers=2, num_heads=2)


def gradients(processes=1, **options):
    """Of all weights after one backward pass, and how many bytes it kept."""
    torch.manual_seed(0)
    config = TokenizerConfig(image_size=32, num_latent_tokens=4, encoder=VIT, decoder=VIT, codebook_size=8)
    tokenizer = TiTok(config).train()
    initialize(tokenizer)
    before = set(tokenizer.state_dict())
    training = TrainingConfig(steps=1, global_batch_size=2, **options)
    accelerate([tokenizer.encoder, tokenizer.decoder], training, processes=processes)
    assert set(tokenizer.state_dict()) == before
    kept = {}
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(id(t), t), lambda t: t)
    images = torch.rand(2, 3, 32, 32)
    with hooks:
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


SIZES = {"num_latent_tokens": 8, "codebook_size": 16, "num_classes": 3, "width": 64, "num_layers": 4, "num_heads": 2,
         "mlp_width": 128, "dropout": 0.0, "attention_dropout": 0.0}  # fmt: skip
GENERATORS = {
    "vit": GeneratorConfig(architecture="vit", **SIZES),
    "uvit": GeneratorConfig(architecture="uvit", **SIZES),
    "autoregressive": AutoregressiveConfig(kind="autoregressive", **SIZES),
}
BF16 = TrainingConfig(steps=1, global_batch_size=2, precision="bf16")


def learnt(name, stream):
    """Loss and gradients of a generator under bfloat16, and the bytes that the backward pass kept."""
    torch.manual_seed(0)
    generator, kept = build(GENERATORS[name]).train(), {}
    initialize(generator)
    for part in generator.modules():
        if hasattr(part, "stream_dtype"):
            part.stream_dtype = stream
    ids, labels = torch.arange(64).view(8, 8) % 16, torch.arange(8) % 3
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(id(t), t), lambda t: t)
    with hooks, precision("bf16", "cpu"):
        logits = generator(ids, labels)
    assert logits.dtype == torch.float32
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten())
    loss.backward()
    gradients = {n: p.grad for n, p in generator.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, sum(t.nbytes for t in kept.values())


@pytest.mark.parametrize("name", GENERATORS)
def test_a_residual_stream_of_16_bits_learns_nearly_the_same_and_keeps_less(name):
    (wide, wide_gradients, wide_bytes), (low, gradients, low_bytes) = learnt(name, None), learnt(name, torch.bfloat16)
    assert wide != low
    torch.testing.assert_close(low, wide, rtol=5e-3, atol=0)
    assert low_bytes < 0.97 * wide_bytes
    assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}
    flat, wide_flat = (torch.cat([g.flatten() for g in each.values()]) for each in (gradients, wide_gradients))
    assert (flat - wide_flat).norm() < 0.03 * wide_flat.norm()


@pytest.mark.parametrize("name", GENERATORS)
def test_on_a_cpu_the_residual_stream_stays_float32(name):
    generator = build(GENERATORS[name]).train()
    accelerate([generator], BF16)
    assert {part.stream_dtype for part in generator.modules() if hasattr(part, "stream_dtype")} == {None}


def test_what_draws_has_a_float32_stream_though_it_was_trained_with_16_bits():
    torch.manual_seed(0)
    generator = build(GENERATORS["vit"]).eval()
    ids, labels = torch.zeros(2, 8, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    before = generator(ids, labels)
    generator.body.stream_dtype = torch.bfloat16
    assert torch.equal(generator(ids, labels), before)


def compiled(test):
    """Mark a test that compiles."""
    test = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute:UserWarning")(test)
    has_compiler = shutil.which("g++") is not None
    return pytest.mark.slow(pytest.mark.skipif(not has_compiler, reason="it needs a C++ compiler on a CPU")(test))


def adversary(compiles):
    torch.manual_seed(0)
    config = AdversaryConfig(
        start=0, weight=0.5, channels=32, optimizer=OptimizerConfig(learning_rate=1e-4),
        schedule=ScheduleConfig(kind="constant"),
    )  # fmt: skip
    training = TrainingConfig(steps=20, global_batch_size=4, compile=compiles)
    return Adversary(Discriminator(32), config, training, single_group())


@compiled
def test_a_compiled_discriminator_takes_nearly_the_same_steps():
    real, made = torch.rand(2, 4, 3, 64, 64, generator=torch.Generator().manual_seed(1)).unbind(0)
    found = []
    for compiles in (False, True):
        torch._dynamo.reset()
        one = adversary(compiles)
        wanted = made.clone().requires_grad_()
        one.loss(wanted, 0).backward()
        assert all(p.grad is None for p in one.discriminator.parameters())
        metrics = one.update(list(zip(real.split(2), made.split(2), strict=True)), 0)
        found.append((wanted.grad, metrics["discriminator_gradient_norm"], metrics["real_logit"]))
    for plain, fast in zip(*found, strict=True):
        assert (fast - plain).norm() < 0.02 * plain.norm()


@compiled
def test_a_compiled_vqgan_gives_the_same_codes():
    torch.manual_seed(0)
    sizes = VqganConfig(channels=8, channel_multipliers=(1, 1, 2, 2), num_res_blocks=1, codebook_size=32, token_size=8)
    vqgan, images = MaskGitVqgan(sizes).eval().requires_grad_(False), torch.rand(4, 3, 32, 32)
    vqgan.codebook.normal_()
    plain = vqgan.codes(images)
    torch._dynamo.reset()
    accelerate([vqgan.encoder], TrainingConfig(steps=1, global_batch_size=4, compile=True))
    assert (vqgan.codes(images) == plain).float().mean() > 0.98


@compiled
@pytest.mark.parametrize("processes", [1, 2])
def test_compiled_networks_give_nearly_the_same_gradients(processes):
    """As a whole, or block by block."""
    plain, compiled = gradients()[0], gradients(processes, compile=True)[0]
    for name in plain:
        np.testing.assert_allclose(compiled[name], plain[name], rtol=1e-3, atol=1e-7)
