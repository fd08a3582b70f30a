"""Networks prepared for inference: the same functions, in the precision asked for."""

import pytest
import tiny
import torch
from torch.nn import functional as F

from titokctl.config.models import GeneratorConfig, TokenizerConfig, TransformerConfig, VqganConfig
from titokctl.errors import UsageError
from titokctl.models.inference import can_infer, fastest_precision, prepared
from titokctl.models.maskgit.generator import MaskGit
from titokctl.models.precision import PRECISIONS, precision
from titokctl.models.titok.tokenizer import TiTok
from titokctl.models.vqgan.fast_decoder import FastVqganDecoder, doubling_kernels, interleaved
from titokctl.models.vqgan.vqgan import VqganDecoder

PROXY = VqganConfig(channels=32, channel_multipliers=(1, 1, 2, 2), num_res_blocks=1, codebook_size=30, token_size=8)

needs_bf16 = pytest.mark.skipif(not can_infer("cpu", "bf16"), reason="this CPU has no kernels for bfloat16")


def tokenizer(head: str) -> TiTok:
    vit = TransformerConfig(patch_size=8, width=64, num_layers=2, num_heads=2)
    torch.manual_seed(0)
    module = TiTok(TokenizerConfig(
        image_size=32, num_latent_tokens=8, encoder=vit, decoder=vit, codebook_size=64, token_size=4, head=head,
        proxy=PROXY if head == "proxy" else None,
    ))  # fmt: skip
    return tiny.enlarged(module, 4)


def generator(architecture: str) -> MaskGit:
    config = GeneratorConfig(architecture=architecture, num_latent_tokens=8, codebook_size=64, num_classes=3, width=64,
                             num_layers=4, num_heads=2, mlp_width=128)  # fmt: skip
    torch.manual_seed(0)
    return tiny.enlarged(MaskGit(config), 4)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_the_fastest_precision_is_one_the_cpu_has():
    assert fastest_precision("cpu") in {"bf16", "float32"}
    with precision(fastest_precision("cpu"), "cpu"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).sum() == 8


def test_doubling_and_convolution_are_one_small_convolution():
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 5, 6, 7), torch.randn(4, 5, 3, 3), torch.randn(4)
    plain = F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, bias, padding=1)
    corners = F.conv2d(x, doubling_kernels(weight), bias.repeat(4), padding=1)
    torch.testing.assert_close(interleaved(corners), plain, rtol=1e-4, atol=1e-5)


def test_the_fast_vqgan_decoder_is_the_plain_one():
    torch.manual_seed(0)
    plain = tiny.enlarged(VqganDecoder(PROXY), 4)
    vectors = torch.randn(3, 8, 4, 6)
    with torch.inference_mode():
        expected = plain(vectors)
        torch.testing.assert_close(FastVqganDecoder(plain, torch.float32)(vectors), expected, rtol=1e-3, atol=1e-4)
        assert relative_error(FastVqganDecoder(plain, torch.bfloat16)(vectors), expected) < 0.05


@needs_bf16
@pytest.mark.parametrize("head", ["pixel", "proxy"])
def test_a_tokenizer_in_bf16_stays_near_float32(head):
    plain = tokenizer(head)
    fast = prepared(plain, "cpu", "bf16")
    ids, images = torch.randint(64, (3, 8)), torch.rand(3, 3, 32, 32)
    with precision("bf16", "cpu"):
        pixels, latents = fast.detokenize(ids), fast.latents(images)
    assert pixels.dtype == latents.dtype == torch.float32
    assert isinstance(fast, TiTok)
    assert 0 < (pixels - plain.detokenize(ids)).abs().mean() < 0.02
    assert 0 < relative_error(latents, plain.latents(images)) < 0.05


@needs_bf16
@pytest.mark.parametrize("architecture", ["vit", "uvit"])
def test_a_generator_in_bf16_stays_near_float32(architecture):
    plain = generator(architecture)
    fast = prepared(plain, "cpu", "bf16")
    ids, labels = torch.randint(65, (3, 8)), torch.arange(3)
    with torch.inference_mode(), precision("bf16", "cpu"):
        logits = fast(ids, labels)
    with torch.inference_mode():
        expected = plain(ids, labels)
    assert logits.dtype == torch.float32
    assert 0 < relative_error(logits, expected) < 0.05


def test_float32_stays_float32():
    plain, ids, images = tokenizer("proxy"), torch.randint(64, (3, 8)), torch.rand(3, 3, 32, 32)
    ready = prepared(plain, "cpu", "float32")
    assert relative_error(ready.latents(images), plain.latents(images)) < 1e-5
    assert relative_error(ready.detokenize(ids), plain.detokenize(ids)) < 1e-4


@needs_bf16
@pytest.mark.parametrize("head", ["pixel", "proxy"])
def test_an_image_does_not_depend_on_its_batch(head):
    fast, ids = prepared(tokenizer(head), "cpu", "bf16"), torch.randint(64, (5, 8))
    with precision("bf16", "cpu"):
        together = fast.detokenize(ids)
        alone = torch.cat([fast.detokenize(ids[i : i + 1]) for i in range(5)])
    assert torch.equal(together, alone)
    assert fast.detokenize(ids[:0]).shape == (0, 3, 32, 32)


@pytest.mark.parametrize("name", ["float32", pytest.param("bf16", marks=needs_bf16)])
def test_latents_depend_neither_on_the_batch_nor_on_the_number_of_threads(name):
    vit = TransformerConfig(patch_size=16, width=512, num_layers=1, num_heads=8)
    torch.manual_seed(0)
    plain = TiTok(TokenizerConfig(image_size=256, num_latent_tokens=128, encoder=vit, decoder=vit, codebook_size=16))
    fast, images, before = (
        prepared(tiny.enlarged(plain, 4), "cpu", name),
        torch.rand(3, 3, 256, 256),
        torch.get_num_threads(),
    )
    try:
        with precision(name, "cpu"):
            expected = fast.latents(images)
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                assert torch.equal(fast.latents(images), expected)
                assert torch.equal(fast.latents(images[2:]), expected[2:])
    finally:
        torch.set_num_threads(before)


@needs_bf16
def test_pixels_do_not_depend_on_the_number_of_threads():
    config = VqganConfig(channels=64, channel_multipliers=(1, 1, 1, 2), codebook_size=30, token_size=8)
    torch.manual_seed(0)
    decoder = FastVqganDecoder(tiny.enlarged(VqganDecoder(config), 4), torch.bfloat16, 4)
    vectors, before = torch.randn(2, 8, 6, 6), torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            with torch.inference_mode():
                found.append(decoder(vectors))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_fp16_is_refused_on_a_cpu():
    with pytest.raises(UsageError, match="no kernels for fp16"):
        prepared(tokenizer("pixel"), "cpu", "fp16")


@pytest.mark.parametrize("name", [name for name in PRECISIONS if can_infer("cpu", name)])
def test_the_copy_is_frozen_and_the_original_untouched(name):
    plain = tokenizer("proxy").train()
    before = {key: value.clone() for key, value in plain.state_dict().items()}
    fast = prepared(plain, "cpu", name)
    assert not fast.training
    assert not any(p.requires_grad for p in fast.parameters())
    assert plain.training
    assert all(p.requires_grad and p.dtype == torch.float32 for p in plain.parameters())
    assert all(torch.equal(value, before[key]) for key, value in plain.state_dict().items())


@needs_bf16
def test_only_the_half_that_is_used_is_converted():
    plain = tokenizer("proxy")
    fast = prepared(plain, "cpu", "bf16", half="decoder")
    assert {p.dtype for p in fast.encoder.parameters()} == {torch.float32}
    assert fast.encoder.patch_embed.weight.data_ptr() == plain.encoder.patch_embed.weight.data_ptr()
    assert torch.bfloat16 in {p.dtype for p in fast.decoder.parameters()}
