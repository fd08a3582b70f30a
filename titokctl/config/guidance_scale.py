"""The guidance scale as people write it: s-form (ours), or w-form with a "w" behind the number.

s: l = c + s (c - u), 0 is off.  w: l = u + w (c - u), 1 is off (DiT, diffusers).  s = w - 1.
"""

import math

from titokctl.errors import UsageError

_PUBLISHED_W, _PUBLISHED_FOR = 6.9, "TiTok-S-128"


def parse_scale(text: str) -> float:
    """ "4.0" or "5.0w" to the s-form. Raises UsageError when it is neither."""
    is_w = text.strip().lower().endswith("w")
    number = text.strip()[:-1] if is_w else text
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"--cfg {text!r} is no number", "e.g. --cfg 4.0, or --cfg 5.0w for DiT's and diffusers' form")
    if value < is_w:
        least = "1w, which is" if is_w else "0, which is"
        raise UsageError(f"--cfg {text} is below {least} no guidance", "larger numbers follow the class more closely")
    # Decimal numbers stay short: 6.9w is 5.9, not 5.9000000000000004.
    return round(value - 1, 12) if is_w else value


def doubt(text: str) -> str:
    """A remark when a number that was published in the w-form is given in the s-form; "" otherwise."""
    if text.strip() == "" or text.strip().lower().endswith("w") or parse_scale(text) != _PUBLISHED_W:
        return ""
    return (
        f"hint: {_PUBLISHED_W} is the scale published for {_PUBLISHED_FOR} in the w-form; here that is "
        f"{_PUBLISHED_W - 1:g}, or --cfg {_PUBLISHED_W}w"
    )


def both_forms(scale: float) -> str:
    """A scale of the s-form in both forms, for people."""
    return f"s = {scale:g} (w = {scale + 1:g} as DiT and diffusers count)"
