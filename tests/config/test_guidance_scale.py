"""The guidance scale as people write it."""

import pytest

from titokctl.config.guidance_scale import both_forms, doubt, parse_scale
from titokctl.errors import UsageError


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


def test_a_number_published_in_the_other_form_is_doubted():
    assert "6.9w" in doubt("6.9")
    assert "5.9" in doubt("6.9")
    for text in ("6.9w", "4.0", "5.9", "4.5"):
        assert doubt(text) == ""


def test_both_forms_are_shown():
    assert both_forms(5.9) == "s = 5.9 (w = 6.9 as DiT and diffusers count)"
