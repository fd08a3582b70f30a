"""Losses of tokenizers and discriminators: the official numbers, and plain NumPy versions."""

import numpy as np
import pytest
import torch
from golden import golden

from titokctl.config.models import TokenizerConfig, TransformerConfig
from titokctl.models.titok import quantizers
from titokctl.training.codebook import reseed
from titokctl.training.learner import Ema
from titokctl.training.losses import (
    adversarial_loss,
    global_means,
    hinge_loss,
    lecam,
    lecam_averages,
    proxy_cross_entropy,
)

VIT = TransformerConfig(patch_size=8, width=16, num_layers=1, num_heads=1)


def bottleneck(**settings):
    config = TokenizerConfig(image_size=16, num_latent_tokens=5, encoder=VIT, decoder=VIT, token_size=3, **settings)
    return quantizers.build(config)


def test_hinge_is_the_official_one_and_plain_numpys():
    numbers = np.load(golden("losses.npz"))
    real, fake = numbers["hinge_real"], numbers["hinge_fake"]
    plain = 0.5 * (np.maximum(1 - real, 0).mean() + np.maximum(1 + fake, 0).mean())
    found = hinge_loss(torch.from_numpy(real), torch.from_numpy(fake)).item()
    assert found == pytest.approx(float(numbers["hinge"]), rel=1e-6)
    assert found == pytest.approx(plain, rel=1e-6)


def test_hinge_asks_no_more_of_pictures_that_are_told_apart():
    real = torch.tensor([1.5, 0.0], requires_grad=True)
    fake = torch.tensor([-2.0, 0.5], requires_grad=True)
    hinge_loss(real, fake).backward()
    assert real.grad.tolist() == [0.0, -0.25]
    assert fake.grad.tolist() == [0.0, 0.25]


def test_adversarial_loss_is_minus_the_mean():
    logits = np.random.default_rng(0).normal(size=(3, 1, 4, 4))
    assert adversarial_loss(torch.from_numpy(logits)).item() == pytest.approx(-logits.mean(), rel=1e-5)


def test_lecam_is_the_official_sequence_and_plain_numpys():
    averages, real_average, fake_average = torch.zeros(2), 0.0, 0.0
    for i, official in enumerate(np.load(golden("losses.npz"))["lecam"]):
        real, fake = 0.3 * i - 0.4, 0.5 - 0.2 * i
        plain = max(real - fake_average, 0) ** 2 + max(real_average - fake, 0) ** 2
        means = torch.tensor([real, fake])
        found = lecam(means, averages).item()
        assert found == pytest.approx(float(official), rel=1e-5)
        assert found == pytest.approx(plain, rel=1e-5)
        averages = lecam_averages(means, averages)
        real_average = 0.999 * real_average + 0.001 * real
        fake_average = 0.999 * fake_average + 0.001 * fake
        np.testing.assert_allclose(averages.numpy(), [real_average, fake_average], rtol=1e-5)


def test_lecam_in_micro_batches_has_the_gradient_of_the_whole_batch():
    draws = torch.Generator().manual_seed(0)
    weight = torch.randn(4, generator=draws, requires_grad=True)
    real, fake = torch.randn(6, 4, generator=draws) + 1, torch.randn(6, 4, generator=draws)
    averages = torch.tensor([0.3, -0.2])

    def means(rows: slice) -> torch.Tensor:
        return torch.stack([(real[rows] @ weight).mean(), (fake[rows] @ weight).mean()])

    whole = lecam(means(slice(0, 6)), averages)
    (expected,) = torch.autograd.grad(whole, weight)
    known = means(slice(0, 6))
    parts = [slice(0, 1), slice(1, 3), slice(3, 6)]
    losses = [lecam(global_means(means(rows), known, (rows.stop - rows.start) / 6), averages) for rows in parts]
    found = sum(torch.autograd.grad(loss, weight)[0] for loss in losses)
    assert expected.any()
    torch.testing.assert_close(found, expected)
    assert all(loss.item() == pytest.approx(whole.item(), rel=1e-5) for loss in losses)


def test_proxy_cross_entropy_equals_a_plain_numpy_version():
    rng = np.random.default_rng(0)
    logits, codes = rng.normal(size=(2, 5, 7)), rng.integers(0, 7, (2, 5))
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -np.take_along_axis(log_p, codes[..., None], -1).mean()
    found = proxy_cross_entropy(torch.from_numpy(logits), torch.from_numpy(codes))
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_proxy_cross_entropy_starts_at_the_logarithm_of_the_number_of_codes():
    loss = proxy_cross_entropy(torch.zeros(2, 4, 1024), torch.randint(1024, (2, 4)))
    assert loss.item() == pytest.approx(6.93, abs=0.01)


@pytest.mark.parametrize("normalize", [False, True])
def test_quantizer_losses_equal_plain_numpy_versions(normalize):
    rng = np.random.default_rng(0)
    z, codebook = rng.normal(size=(2, 5, 3)), rng.normal(size=(11, 3))
    vq = bottleneck(codebook_size=11, normalize_codes=normalize, commitment_cost=0.25)
    vq.codebook.data.copy_(torch.from_numpy(codebook))
    out = vq(torch.from_numpy(z))
    if normalize:
        z, codebook = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (z, codebook))
    ids = ((z[:, :, None] - codebook) ** 2).sum(-1).argmin(-1)
    expected = ((codebook[ids] - z) ** 2).mean()
    assert np.array_equal(out.ids.numpy(), ids)
    assert out.codebook_loss.item() == pytest.approx(expected, rel=1e-5)
    assert out.commitment_loss.item() == pytest.approx(0.25 * expected, rel=1e-5)


def test_kl_equals_a_plain_numpy_version():
    parameters = np.random.default_rng(0).normal(size=(4, 5, 6))
    parameters[0, 0, 3:] = (-40, 1, 25)  # beyond the clamps
    mean, log_variance = parameters[..., :3], parameters[..., 3:].clip(-30, 20)
    expected = (0.5 * (mean**2 + np.exp(log_variance) - 1 - log_variance)).sum((1, 2)).mean()
    kl = bottleneck(quantizer="gaussian", codebook_size=None)(torch.from_numpy(parameters)).kl
    assert kl.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("normalize", [False, True])
def test_reseeding_equals_a_plain_numpy_version(normalize):
    rng = np.random.default_rng(0)
    latents, codebook, usage = rng.normal(size=(40, 3)), rng.normal(size=(8, 3)), rng.random(8) * 1e-4
    ids = rng.integers(0, 5, 40)  # codes 5, 6 and 7 are dead
    found, found_usage = torch.from_numpy(codebook).float(), torch.from_numpy(usage).float()
    reseed(found, found_usage, torch.from_numpy(latents).float(), torch.from_numpy(ids), 0.99, normalize)

    usage = 0.99 * usage + 0.01 * np.bincount(ids, minlength=8) / 40
    pull = np.exp(-10 * usage * 8 / 0.01 - 1e-3)[:, None]
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) if normalize else x for x in (codebook, latents))
    nearest = latents[((a[:, None] - b) ** 2).sum(-1).argmin(1)]
    np.testing.assert_allclose(found_usage.numpy(), usage, rtol=1e-5)
    np.testing.assert_allclose(found.numpy(), (1 - pull) * codebook + pull * nearest, rtol=1e-5, atol=1e-6)
    assert pull[5:].min() > 0.4
    assert pull[:5].max() < 0.4


def test_ema_equals_a_plain_numpy_version():
    """Over several tensors and past the end of the warm-up."""
    rng = np.random.default_rng(0)
    module = torch.nn.Linear(3, 2)
    average = Ema(module, 0.5)
    expected = np.zeros((2, 3))
    for t in range(20):
        value = rng.normal(size=(2, 3))
        module.weight.data.copy_(torch.from_numpy(value))
        average.update(module)
        decay = 0.0 if t == 0 else min(0.5, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * value
        np.testing.assert_allclose(average.shadow["weight"].numpy(), expected, rtol=1e-5, atol=1e-6)
