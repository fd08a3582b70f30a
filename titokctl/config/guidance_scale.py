"""The guidance scale as text: a number in the s-form (ours), or in the w-form with a "w" after the number; intervals.

s: l = c + s (c - u), 0 is off.  w: l = u + w (c - u), 1 is off (DiT, diffusers).  s = w - 1.
"""

import math

from titokctl.errors import UsageError

_PUBLISHED_W, _PUBLISHED_FOR = 6.9, "TiTok-S-128"


def parse_scale(text: str) -> float:
    """Return the s-form of text such as "4.0" or "5.0w". Raises UsageError for any other text."""
    is_w = text.strip().lower().endswith("w")
    number = text.strip()[:-1] if is_w else text
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(
            f"--cfg {text!r} is not a number", "e.g. --cfg 4.0, or --cfg 5.0w for DiT's and diffusers' form"
        )
    if value < is_w:
        least = "1w, which is" if is_w else "0, which is"
        raise UsageError(f"--cfg {text} is below {least} no guidance", "larger numbers follow the class more closely")
    # Rounded, so that 6.9w is 5.9 and not 5.9000000000000004.
    return round(value - 1, 12) if is_w else value


def parse_interval(text: str) -> tuple[float, float]:
    """Return the (A, B) of text such as "0.2,0.8". Raises UsageError unless 0 <= A < B <= 1."""
    try:
        begin, end = (float(part) for part in text.split(","))
    except ValueError:
        begin, end = math.nan, math.nan
    if not 0 <= begin < end <= 1:
        raise UsageError(
            f"--cfg-interval {text!r} is not two rising fractions of the sampling steps", "e.g. --cfg-interval 0.2,0.8"
        )
    return begin, end


def doubt(text: str) -> str:
    """Return a remark when a number that was published in the w-form is given in the s-form; "" otherwise."""
    if text.strip() == "" or text.strip().lower().endswith("w") or parse_scale(text) != _PUBLISHED_W:
        return ""
    return (
        f"hint: {_PUBLISHED_W} is the scale published for {_PUBLISHED_FOR} in the w-form; here that is "
        f"{_PUBLISHED_W - 1:g}, or --cfg {_PUBLISHED_W}w"
    )


def both_forms(scale: float) -> str:
    """Return a scale of the s-form in both forms, for messages."""
    return f"s = {scale:g} (w = {scale + 1:g} as DiT and diffusers count)"
