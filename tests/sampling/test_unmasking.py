"""Unmasking rules: how many positions each decides, that images stay independent, and rules of other packages."""

import itertools
from collections import Counter
from pathlib import Path

import pytest
import tiny
import torch

from titokctl.config import recipe_files
from titokctl.config.models import GeneratorConfig
from titokctl.config.sampling import UNMASKING_RULES, SamplingConfig
from titokctl.errors import UsageError
from titokctl.models.maskgit.generator import MaskGit
from titokctl.models.maskgit.masking import tokens_left
from titokctl.models.noise import KeyedNoise
from titokctl.sampling.decoding import sample_ids

TOKENS, CODES, STEPS = 16, 32, 6
SETTINGS = SamplingConfig(num_steps=STEPS, guidance_scale=1.0, choice_temperature=4.0)
LABELS = torch.tensor([0, 1, 2, 3, 4, 0, 1])


@pytest.fixture(scope="module")
def generator() -> MaskGit:
    torch.manual_seed(0)
    model = MaskGit(
        GeneratorConfig(num_latent_tokens=TOKENS, codebook_size=CODES, num_classes=5, width=32, num_layers=2,
                        num_heads=2, mlp_width=64)
    )  # fmt: skip
    return tiny.enlarged(model)


def ruled(name: str, **changes: object) -> SamplingConfig:
    return SETTINGS.model_copy(update={"unmasking": name, **changes})


class Watched(KeyedNoise):
    """The usual noise, which keeps the positions whose ids were drawn in each step."""

    def __init__(self, batch: int, seed: int = 0) -> None:
        super().__init__(seed, torch.arange(batch))
        self.drawn: list[torch.Tensor] = []

    def choose(self, scores, temperature, step, positions):
        self.drawn.append(positions)
        return super().choose(scores, temperature, step, positions)


def masked_before_each_step(generator: MaskGit, settings: SamplingConfig, seed: int = 0) -> list[list[set[int]]]:
    """The masked positions of every image before each step."""
    noise = Watched(len(LABELS), seed)
    ids = sample_ids(generator, LABELS, settings, noise=noise)
    assert 0 <= ids.min() <= ids.max() < CODES, "no position is masked at the end"
    return [[set(row.tolist()) for row in positions] for positions in noise.drawn]


@pytest.mark.parametrize("rule", UNMASKING_RULES)
def test_the_number_of_masked_positions_follows_the_schedule(generator, rule):
    masked = masked_before_each_step(generator, ruled(rule, remasking_cap=0.5))
    expected = [TOKENS, *tokens_left(TOKENS, STEPS)[:-1]]
    assert [[len(row) for row in step] for step in masked] == [[n] * len(LABELS) for n in expected]


@pytest.mark.parametrize(("rule", "cap"), [("confidence", 0.1), ("random-order", 0.1), ("remasking", 0.0)])
def test_without_remasking_every_position_is_decided_once(generator, rule, cap):
    masked = masked_before_each_step(generator, ruled(rule, remasking_cap=cap))
    for before, after in itertools.pairwise(masked):
        assert all(b > a for b, a in zip(before, after, strict=True))


@pytest.mark.parametrize("cap", [0.2, 0.5, 1.0])
def test_remasking_masks_at_most_the_cap_of_the_decided_positions_again(generator, cap):
    masked = masked_before_each_step(generator, ruled("remasking", remasking_cap=cap))
    again = 0
    for before, after in itertools.pairwise(masked):
        for b, a in zip(before, after, strict=True):
            assert len(a - b) == min(int(cap * (TOKENS - len(b))), len(a))
            again += len(a - b)
    assert again > 0


def test_a_cap_of_0_is_the_published_rule(generator):
    published = sample_ids(generator, LABELS, SETTINGS)
    assert torch.equal(sample_ids(generator, LABELS, ruled("remasking", remasking_cap=0.0)), published)
    assert not torch.equal(sample_ids(generator, LABELS, ruled("remasking", remasking_cap=0.5)), published)
    assert not torch.equal(sample_ids(generator, LABELS, ruled("random-order")), published)


def test_the_random_order_is_each_images_own_and_all_positions_are_equally_likely(generator):
    firsts: Counter[int] = Counter()
    for seed in range(60):
        masked = masked_before_each_step(generator, ruled("random-order", num_steps=TOKENS), seed)
        assert len({tuple(sorted(row)) for row in masked[TOKENS // 2]}) > 1, "images have different orders"
        for row in masked[1]:
            (first,) = set(range(TOKENS)) - row
            firsts[first] += 1
    expected = sum(firsts.values()) / TOKENS
    # Chi-square with 15 degrees of freedom: below 37.7 with a probability of 99.9 %.
    assert sum((firsts[p] - expected) ** 2 / expected for p in range(TOKENS)) < 37.7


@pytest.mark.parametrize("rule", UNMASKING_RULES)
def test_an_image_does_not_depend_on_its_batch(generator, rule):
    settings = ruled(rule, remasking_cap=0.3)
    whole = sample_ids(generator, LABELS, settings)
    assert len(whole.unique(dim=0)) == len(LABELS)
    for size in (1, 3):
        parts = [
            sample_ids(generator, LABELS[i : i + size], settings, torch.arange(i, min(i + size, 7)))
            for i in range(0, 7, size)
        ]
        assert torch.equal(torch.cat(parts), whole)
    order = torch.tensor([6, 2, 0, 5, 1, 4, 3])
    assert torch.equal(sample_ids(generator, LABELS[order], settings, order), whole[order])


@pytest.mark.parametrize("rule", UNMASKING_RULES)
def test_more_steps_than_tokens_end_with_codes(generator, rule):
    with pytest.warns(UserWarning, match="steps for 16 tokens"):
        ids = sample_ids(generator, LABELS, ruled(rule, num_steps=TOKENS + 4))
    assert ids.max() < CODES


def test_an_unknown_rule_and_a_cap_above_1_are_refused_with_the_other_problems():
    with pytest.raises(UsageError, match=r"(?s)2 problems.*random-order, remasking.*remasking_cap"):
        recipe_files.validate(SamplingConfig, {"unmasking": "halton", "remasking_cap": 1.5}, "the settings")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package with two rules: one from the left to the right, and one that returns too few positions."""
    (tmp_path / "lefts.py").write_text(
        "def left_first(step):\n    return step.positions[:, step.positions.shape[1] - step.left :]\n"
        "def none(step):\n    return step.positions[:, :0]\n"
    )
    info = tmp_path / "lefts-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lefts\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[titokctl.unmasking_rules]\nleft = lefts:left_first\nnone = lefts:none\n")
    monkeypatch.syspath_prepend(tmp_path)


def test_a_package_adds_a_rule(generator, package):
    settings = SamplingConfig(**{**SETTINGS.model_dump(), "unmasking": "left"})
    masked = masked_before_each_step(generator, settings)
    for step, left in zip(masked[1:], tokens_left(TOKENS, STEPS), strict=False):
        assert all(row == set(range(TOKENS - left, TOKENS)) for row in step)


def test_a_rule_that_returns_another_number_of_positions_is_named(generator, package):
    with pytest.raises(ValueError, match=r"unmasking rule 'none': expected positions \(7, "):
        sample_ids(generator, LABELS, ruled("none"))
