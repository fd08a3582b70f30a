"""How many tokens are masked when."""

import math

import pytest
import torch

from titokctl.models.maskgit.masking import SCHEDULES, mask_ratio, tokens_left


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_all_masked_at_the_start_none_at_the_end_and_falling_between(schedule):
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    ratio = mask_ratio(t, schedule)
    assert ratio[0] == 1
    assert ratio[-1] == pytest.approx(0, abs=1e-15)
    assert (ratio.diff() < 0).all()
    assert [mask_ratio(float(x), schedule) for x in t] == pytest.approx(ratio.tolist(), abs=1e-15)


def test_values_of_the_formulas():
    found = {schedule: mask_ratio(0.25, schedule) for schedule in SCHEDULES}
    expected = {"arccos": math.acos(0.25) * 2 / math.pi, "cosine": math.cos(math.pi / 8), "linear": 0.75, "root": 0.5}
    assert found == pytest.approx(expected)
    with pytest.raises(ValueError, match=r"'square'.*arccos, cosine, linear, root"):
        mask_ratio(0.5, "square")


def test_tokens_left_of_the_published_setting():
    assert tokens_left(32, 8) == [29, 26, 24, 21, 18, 14, 10, 0]


@pytest.mark.parametrize("num_tokens", [1, 2, 7, 32, 128])
@pytest.mark.parametrize("num_steps", [1, 2, 8, 64, 200])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_tokens_left_always_ends_with_none_and_never_rises(num_tokens, num_steps, schedule):
    left = tokens_left(num_tokens, num_steps, schedule)
    assert len(left) == num_steps
    assert left[-1] == 0
    assert all(n >= 1 for n in left[:-1])
    # One token at least is settled in every step, as long as more than one is open.
    for before, after in zip([num_tokens, *left], left, strict=False):
        assert after < before or after == 1
