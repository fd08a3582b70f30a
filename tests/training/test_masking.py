"""Masks of generator training: the schedule's statistics, and rows that depend on (seed, step) alone."""

import pytest
import torch

from titokctl.models.maskgit.masking import mask_ratio, masked_count, random_subset


@pytest.mark.parametrize("tokens", [1, 8, 32, 128])
@pytest.mark.parametrize("seed", [0, 1])
def test_each_row_has_exactly_its_count_and_every_position_its_share(tokens, seed):
    draws = torch.Generator().manual_seed(seed)
    count = masked_count(torch.rand(4000, generator=draws), tokens)
    masked = random_subset(count, tokens, draws)
    assert torch.equal(masked.sum(1), count)
    assert count.min() >= 1
    assert count.max() <= tokens
    share = masked.float().mean(0)
    # Four standard deviations of a mean over 4,000 rows, around the mean over all positions.
    assert (share - share.mean()).abs().max() < 4 * 0.5 / 4000**0.5


@pytest.mark.parametrize(("schedule", "mean"), [("arccos", 2 / torch.pi), ("cosine", 2 / torch.pi), ("linear", 0.5)])
def test_mean_ratio_is_the_integral_of_the_schedule(schedule, mean):
    t = (torch.arange(100_000) + 0.5) / 100_000
    assert mask_ratio(t, schedule).mean().item() == pytest.approx(mean, abs=1e-4)


@pytest.mark.parametrize("schedule", ["arccos", "cosine", "linear", "root"])
@pytest.mark.parametrize("tokens", [8, 32])
def test_counts_follow_the_schedule(schedule, tokens):
    draws = torch.Generator().manual_seed(3)
    rows = 40_000
    drawn = masked_count(mask_ratio(torch.rand(rows, generator=draws), schedule), tokens)
    found = torch.bincount(drawn, minlength=tokens + 1) / rows
    # The same rule over an even grid of times, in plain arithmetic.
    times = [(i + 0.5) / 20_000 for i in range(20_000)]
    exact = [max(1, min(tokens, round(tokens * mask_ratio(t, schedule)))) for t in times]
    expected = torch.bincount(torch.tensor(exact), minlength=tokens + 1) / len(times)
    assert (found - expected).abs().max() < 5 * (0.25 / rows) ** 0.5
