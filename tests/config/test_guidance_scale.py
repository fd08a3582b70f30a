"""The guidance scale as people write it."""

import pytest

from titokctl.config import recipe_files
from titokctl.config.guidance_scale import both_forms, doubt, parse_interval, parse_scale
from titokctl.errors import UsageError, UserError


@pytest.mark.parametrize(
    ("text", "scale"), [("4.0", 4.0), ("0", 0.0), ("6.9w", 5.9), ("1w", 0.0), (" 2.5W ", 1.5), ("1e1", 10.0)]
)
def test_both_forms_are_read(text, scale):
    assert parse_scale(text) == scale


@pytest.mark.parametrize("text", ["abc", "", "w", "4,0", "nan", "inf", "4.0x", "4.0ww"])
def test_text_that_is_not_a_number(text):
    with pytest.raises(UsageError, match="is not a number") as caught:
        parse_scale(text)
    assert "--cfg 4.0" in caught.value.hint


@pytest.mark.parametrize("text", ["-1", "-0.001", "0.5w", "-2w"])
def test_scales_below_no_guidance(text):
    with pytest.raises(UsageError, match="no guidance"):
        parse_scale(text)


@pytest.mark.parametrize(
    ("text", "interval"), [("0.2,0.8", (0.2, 0.8)), ("0,1", (0.0, 1.0)), (" 0.5 , 1 ", (0.5, 1.0))]
)
def test_an_interval_is_two_rising_fractions(text, interval):
    assert parse_interval(text) == interval


@pytest.mark.parametrize(
    "text", ["1,0", "0.5,0.5", "-0.1,0.5", "0.2,1.5", "nan,1", "0,inf", "0.2", "0.1,0.2,0.3", "a,b"]
)
def test_intervals_outside_0_to_1_or_reversed(text):
    with pytest.raises(UsageError, match="not two rising fractions") as caught:
        parse_interval(text)
    assert "--cfg-interval 0.2,0.8" in caught.value.hint


@pytest.mark.parametrize("interval", [[0.8, 0.2], [0.5, 0.5], [-0.1, 0.5], [0.2, 1.5], [0.2], 0.5])
@pytest.mark.parametrize("recipe", ["tiny", "tiny-rar", "tiny-flow"])
def test_recipes_refuse_such_intervals_too(recipe, interval):
    with pytest.raises(UserError, match=r"sampling\.guidance_interval"):
        recipe_files.load(recipe, "generator", [f"sampling.guidance_interval={interval}"])


@pytest.mark.parametrize(
    ("recipe", "change", "field"),
    [
        ("tiny-rar", "sampling.num_steps=8", "num_steps"),
        ("tiny-rar", "loss.mask_schedule=cosine", "mask_schedule"),
        ("tiny-rar", "sampling.unmasking=remasking", "unmasking"),
        ("tiny-rar", "sampling.top_p=0", "top_p"),
        ("tiny", "sampling.top_p=0.9", "top_p"),
        ("tiny", "loss.random_until=0.5", "random_until"),
        ("tiny-flow", "sampling.temperature=0.9", "temperature"),
    ],
)
def test_recipes_name_settings_of_another_kind_and_impossible_ones(recipe, change, field):
    with pytest.raises(UserError, match=field):
        recipe_files.load(recipe, "generator", [change])


def test_a_number_published_in_the_other_form_is_doubted():
    assert "6.9w" in doubt("6.9")
    assert "5.9" in doubt("6.9")
    for text in ("6.9w", "4.0", "5.9", "4.5"):
        assert doubt(text) == ""


def test_both_forms_are_shown():
    assert both_forms(5.9) == "s = 5.9 (w = 6.9 as DiT and diffusers count)"
