"""The TiTok network: its public edge, its bottlenecks, and what training relies on."""

import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from titokctl.config.models import TokenizerConfig, TransformerConfig, VqganConfig
from titokctl.errors import UserError
from titokctl.models.initialization import initialize
from titokctl.models.titok.quantizers import nearest
from titokctl.models.titok.tokenizer import TiTok
from titokctl.models.titok.vit import from_overlapping_patches, from_patches, shuffle, to_patches

VIT = TransformerConfig(patch_size=8, width=32, num_layers=2, num_heads=2)
PROXY = VqganConfig(channels=32, channel_multipliers=(1, 1, 2, 2), num_res_blocks=1, codebook_size=50, token_size=16)
VARIANTS = {
    "pixel": {},
    "plain codes": {"normalize_codes": False},
    "overlapping patches": {"overlapping_patches": True},
    "gaussian": {"quantizer": "gaussian", "codebook_size": None},
    "proxy": {"head": "proxy", "proxy": PROXY, "shuffled_bottleneck": True},
    "shuffled pixel": {"shuffled_bottleneck": True},
}


def tiny(**changes) -> TiTok:
    """A tokenizer of 32-pixel images in 6 tokens, with fixed weights."""
    settings = {"codebook_size": 40, "token_size": 5} | changes
    config = TokenizerConfig(image_size=32, num_latent_tokens=6, encoder=VIT, decoder=VIT, **settings)
    torch.manual_seed(0)
    tokenizer = TiTok(config)
    initialize(tokenizer)
    return tokenizer.eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("variant", VARIANTS)
def test_there_and_back(variant, images):
    tokenizer = tiny(**VARIANTS[variant])
    tokens = tokenizer.tokenize(images)
    latents = tokenizer.latents(images)
    if variant == "gaussian":
        assert latents.shape == (3, 6, 10)
        assert torch.equal(tokens, latents[..., :5])
    else:
        assert latents.shape == (3, 6, 5)
        assert tokens.shape == (3, 6)
        assert tokens.dtype == torch.int64
    pixels = tokenizer.detokenize(tokens)
    assert pixels.shape == (3, 3, 32, 32)
    assert pixels.dtype == torch.float32
    assert pixels.min() >= 0
    assert pixels.max() <= 1


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_row_does_not_depend_on_its_batch(variant, images):
    tokenizer = tiny(**VARIANTS[variant])
    assert torch.equal(tokenizer.latents(images)[1:2], tokenizer.latents(images[1:2]))
    # Two of three, since torch has other kernels for a 3x3 convolution over a single small image.
    tokens = tokenizer.tokenize(images)
    assert torch.equal(tokenizer.detokenize(tokens)[1:], tokenizer.detokenize(tokens[1:]))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda x: x[0], r"\(B, 3, 32, 32\), got \(3, 32, 32\)"),
        (lambda x: x[..., :16], r"\(B, 3, 32, 32\), got \(3, 3, 32, 16\)"),
        (lambda x: x[:, :1], r"got \(3, 1, 32, 32\)"),
        (lambda x: x * 255, r"values in \[0, 1\], got \[0\.\d+, 25\d"),
        (lambda x: x - 0.5, r"values in \[0, 1\], got \[-0\.\d+"),
        (lambda x: x * torch.nan, r"values in \[0, 1\], got \[nan"),
        (lambda x: (x * 255).byte(), "floating point numbers, got torch.uint8"),
        (lambda x: x.numpy(), "expected a tensor, got ndarray"),
    ],
)
def test_wrong_images(wrong, words, images):
    with pytest.raises(ValueError, match=words):
        tiny().tokenize(wrong(images))


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (torch.zeros(2, 5, dtype=torch.long), r"\(B, 6\), got \(2, 5\)"),
        (torch.zeros(6, dtype=torch.long), r"\(B, 6\), got \(6,\)"),
        (torch.zeros(2, 6), "expected integers, got torch.float32"),
        (torch.full((1, 6), 40), "expected 0 to 39, got 40 to 40"),
        (torch.full((1, 6), -1), "expected 0 to 39, got -1 to -1"),
    ],
)
def test_wrong_ids(ids, words):
    with pytest.raises(ValueError, match=words):
        tiny().detokenize(ids)


def test_wrong_gaussian_latents():
    tokenizer = tiny(**VARIANTS["gaussian"])
    with pytest.raises(ValueError, match=r"\(B, 6, 5\), got \(2, 6, 10\)"):
        tokenizer.detokenize(torch.zeros(2, 6, 10))
    with pytest.raises(ValueError, match="floating point"):
        tokenizer.detokenize(torch.zeros(2, 6, 5, dtype=torch.long))


def test_ids_of_any_integer_type():
    tokenizer = tiny()
    ids = torch.arange(12).view(2, 6)
    expected = tokenizer.detokenize(ids)
    for dtype in (torch.int32, torch.uint8, torch.uint16):
        assert torch.equal(tokenizer.detokenize(ids.to(dtype)), expected)


def test_stage_one_has_logits_but_no_pixels(images):
    tokenizer = tiny(**VARIANTS["proxy"], pixel_decoder=False)
    ids = tokenizer.tokenize(images)
    with torch.inference_mode():
        assert tokenizer.decode_proxy_logits(tokenizer.quantizer.vectors_of(ids)).shape == (3, 16, 50)
    with pytest.raises(ValueError, match="stage 1 only"):
        tokenizer.detokenize(ids)


@pytest.mark.parametrize("normalize", [True, False])
def test_quantizer_in_training(normalize, images):
    """The decoder trains on exactly what ids will give it, and gradients reach the encoder as if nothing were there."""
    tokenizer = tiny(normalize_codes=normalize).train()
    latents = tokenizer.encode(images).detach().requires_grad_()
    out = tokenizer.quantizer(latents)
    assert torch.equal(out.vectors, tokenizer.quantizer.vectors_of(out.ids))
    assert torch.equal(out.ids, tokenizer.tokenize(images))
    (out.vectors * torch.arange(5.0)).sum().backward()
    plain = latents.detach().clone().requires_grad_()
    ((F.normalize(plain, dim=-1) if normalize else plain) * torch.arange(5.0)).sum().backward()
    torch.testing.assert_close(latents.grad, plain.grad)
    assert tokenizer.quantizer.codebook.grad is None
    out = tokenizer.quantizer(latents)
    torch.testing.assert_close(out.commitment_loss, 0.25 * out.codebook_loss)
    out.codebook_loss.backward()
    assert tokenizer.quantizer.codebook.grad.abs().sum() > 0


def test_ids_do_not_depend_on_autocast():
    """Two codes that bfloat16 cannot tell apart stay apart."""
    tokenizer = tiny(normalize_codes=False)
    with torch.no_grad():
        tokenizer.quantizer.codebook[0] = 1.0
        tokenizer.quantizer.codebook[1] = 1.001
    latents = torch.full((1, 6, 5), 1.0009)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (tokenizer.quantizer.nearest(latents) == 1).all()
        out = tokenizer.quantizer(latents)
    assert (out.ids == 1).all()
    assert out.vectors.dtype == torch.float32


def test_nearest_in_blocks_is_nearest(monkeypatch):
    points, codes = torch.randn(50, 4), torch.randn(17, 4)
    expected = torch.cdist(points, codes).argmin(-1)
    assert torch.equal(nearest(points, codes), expected)
    monkeypatch.setattr("titokctl.models.titok.quantizers.MAX_DISTANCES", 17 * 7)
    assert torch.equal(nearest(points, codes), expected)


def test_gaussian_draws_in_training_only(images):
    tokenizer = tiny(**VARIANTS["gaussian"])
    latents = tokenizer.encode(images)
    mean = latents[..., :5]
    assert torch.equal(tokenizer.quantizer(latents).vectors, mean)
    assert not torch.equal(tokenizer.train().quantizer(latents).vectors, mean)
    sure = torch.cat([mean, torch.full_like(mean, -100.0)], -1)  # clamped to -30, not to no deviation at all
    drawn = tokenizer.quantizer(sure).vectors
    assert 0 < (drawn - mean).abs().max() < 1e-4


def test_shuffle_reads_memory_in_another_order():
    x = torch.arange(6.0).view(1, 2, 3)  # K 2, D 3
    assert shuffle(x).tolist() == [[[0, 2, 4], [1, 3, 5]]]


def test_patches_are_those_of_a_strided_convolution(images):
    kernel = torch.randn(7, 3, 8, 8)
    expected = F.conv2d(images, kernel, stride=8).flatten(2).mT
    torch.testing.assert_close(to_patches(images, 8) @ kernel.flatten(1).T, expected, atol=1e-4, rtol=1e-4)


def test_patches_come_back_where_they_were(images):
    colour_last = to_patches(images, 8).unflatten(-1, (3, 64)).mT.flatten(-2)
    assert torch.equal(from_patches(colour_last, 8), images)


def test_initialization():
    tokenizer = tiny(codebook_size=2000)
    width = VIT.width
    linear = tokenizer.encoder.blocks[0].mlp.up
    assert linear.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not linear.bias.any()
    bound = (6 / (4 * width)) ** 0.5
    qkv = tokenizer.encoder.blocks[0].attention.qkv.weight
    assert 0.95 * bound < qkv.abs().max().item() <= bound
    assert tokenizer.encoder.positional_embedding.std().item() == pytest.approx(width**-0.5, rel=0.1)
    codebook = tokenizer.quantizer.codebook
    assert 0.99 / 2000 < codebook.abs().max().item() <= 1 / 2000
    assert all(p.any() or n.endswith(("bias",)) for n, p in tokenizer.named_parameters())


def test_initialization_follows_the_seed():
    assert torch.equal(tiny().latent_tokens, tiny().latent_tokens)


def test_unknown_quantizer():
    with pytest.raises(UserError, match="unknown quantizer 'fsq'"):
        tiny(quantizer="fsq")


def test_a_quantizer_from_an_installed_package(tmp_path: Path, monkeypatch):
    """An entry point of another package is found by its name."""
    (tmp_path / "signs_quantizer.py").write_text(
        "import torch\n"
        "class Signs(torch.nn.Module):\n"
        "    def __init__(self, config):\n"
        "        super().__init__()\n"
        "        self.channels = config.token_size\n"
        "    def nearest(self, z):\n"
        "        return ((z > 0) * 2 ** torch.arange(z.shape[-1])).sum(-1)\n"
        "    def vectors_of(self, ids):\n"
        "        return (ids[..., None] // 2 ** torch.arange(self.channels) % 2) * 2.0 - 1\n"
    )
    info = tmp_path / "signs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: signs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[titokctl.quantizers]\nsigns = signs_quantizer:Signs\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    tokenizer = tiny(quantizer="signs", codebook_size=32)
    ids = tokenizer.tokenize(torch.rand(2, 3, 32, 32))
    assert ids.max() < 32
    assert tokenizer.detokenize(ids).shape == (2, 3, 32, 32)


def test_overlapping_patches_have_no_seams():
    """Patches that all show the same linear ramp continue each other inside the picture."""
    size, grid = 8, 4
    ramp = torch.ones(1, grid * grid, 4 * size * size * 3)
    whole = from_overlapping_patches(ramp, size)
    assert whole.shape == (1, 3, 32, 32)
    inside = whole[:, :, size // 2 : -size // 2, size // 2 : -size // 2]
    assert torch.allclose(inside, torch.ones_like(inside), atol=1e-6)
    one = torch.zeros(1, grid * grid, 4 * size * size * 3)
    one[0, 5] = 1  # second row, second column: pixels 8 to 15, reaching 4 pixels further
    reached = from_overlapping_patches(one, size)[0, 0] > 0
    assert reached.nonzero().min(0).values.tolist() == [4, 4]
    assert reached.nonzero().max(0).values.tolist() == [19, 19]


@pytest.mark.parametrize(
    "changes", [{"head": "proxy", "proxy": PROXY}, {"decoder": VIT.model_copy(update={"patch_size": 1})}]
)
def test_overlapping_patches_need_pixels_and_an_even_size(changes):
    fields = {"image_size": 32, "num_latent_tokens": 6, "encoder": VIT, "decoder": VIT, "overlapping_patches": True}
    with pytest.raises(ValueError, match="overlapping_patches"):
        TokenizerConfig(**(fields | changes))
