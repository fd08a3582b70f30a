"""Keyed noise: the published generator, and numbers that depend on nothing but their key."""

import math

import pytest
import torch

from titokctl.models.noise import KeyedNoise, gumbel_of, keyed_uniforms, philox


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # known answers that come with Random123, the authors' library
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_answers(counter, key, expected):
    words = philox(tuple(torch.tensor([word]) for word in counter), key)
    assert tuple(int(word) for word in words) == expected


def uniforms(seed: int, *indices: int) -> torch.Tensor:
    return keyed_uniforms(seed, torch.tensor(indices), num_steps=3, num_tokens=5)


def test_an_image_has_its_numbers_whoever_else_is_there():
    together = uniforms(7, 4, 0, 9, 2**40)
    assert together.shape == (2, 3, 4, 5)
    for row, index in enumerate((4, 0, 9, 2**40)):
        assert torch.equal(together[:, :, row], uniforms(7, index)[:, :, 0])


@pytest.mark.parametrize("other", [(8, 0), (-7, 0), (7 + 2**32, 0), (7, 1), (7, 2**32), (7, 2**40)])
def test_another_seed_or_image_has_other_numbers(other):
    seed, index = other
    assert not (uniforms(7, 0) == uniforms(seed, index)).any()


def test_numbers_differ_between_steps_positions_and_draws():
    assert uniforms(0, 0, 1, 2).unique().numel() == 2 * 3 * 3 * 5


def test_numbers_are_uniform_and_never_0_or_1():
    many = keyed_uniforms(1, torch.arange(2000), num_steps=4, num_tokens=16)
    assert many.dtype == torch.float32
    assert 0 < many.min() < 1e-4
    assert 1 - 1e-4 < many.max() < 1
    counts = torch.histc(many, 64, 0, 1)
    expected = many.numel() / 64
    # Chi-square with 63 degrees of freedom; 120 is beyond the 1 - 1e-5 quantile.
    assert ((counts - expected) ** 2 / expected).sum() < 120
    draws = many.flatten(1)
    assert abs(torch.corrcoef(draws)[0, 1]) < 0.02


def test_the_extreme_words_stay_inside():
    ends = ((torch.tensor([0, 0xFFFFFFFF]) >> 9).float() + 0.5) * 2.0**-23
    assert ends[0] > 0
    assert ends[1] < 1
    assert gumbel_of(torch.tensor([0.0, 1.0, *ends])).isfinite().all()


def noise(batch: int) -> KeyedNoise:
    made = KeyedNoise(3, torch.arange(batch))
    made.prepare(num_steps=2, num_tokens=4)
    return made


def test_choices_follow_the_softmax_at_the_temperature():
    logits = torch.tensor([2.0, 0.0, 1.0, -math.inf, 0.5])
    batch, temperature = 20_000, 1.7
    positions = torch.tensor([[3, 1]]).expand(batch, 2)
    chosen = noise(batch).choose(logits.expand(batch, 2, 5), temperature, 1, positions)
    shares = torch.bincount(chosen.flatten(), minlength=5) / chosen.numel()
    assert shares[3] == 0
    assert torch.allclose(shares, (logits / temperature).softmax(0), atol=0.01)
    # Different positions choose independently of each other.
    assert abs(torch.corrcoef(chosen.T.float())[0, 1]) < 0.03


@pytest.mark.parametrize("temperature", [0.0, 1e-30])
def test_choices_are_the_best_at_temperature_0(temperature):
    scores = torch.tensor([[[0.0, 3.0, 1.0]]])
    assert noise(1).choose(scores, temperature, 0, torch.tensor([[0]])).item() == 1


def test_codes_of_probability_0_are_never_chosen():
    scores = torch.full((512, 4, 9), -1e30)
    scores[..., 4] = scores[..., 6] = 0
    chosen = noise(512).choose(scores, 1.0, 0, torch.arange(4).expand(512, 4))
    assert set(chosen.unique().tolist()) == {4, 6}


def test_gumbel_numbers_have_their_mean_and_spread():
    values = noise(20_000).gumbel(0, torch.arange(4).expand(20_000, 4))
    assert values.mean().item() == pytest.approx(0.5772, abs=0.02)
    assert values.var().item() == pytest.approx(math.pi**2 / 6, abs=0.05)
