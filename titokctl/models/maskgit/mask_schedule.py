"""Mask schedules: the share gamma(t) of masked tokens at time t, from 1 at t = 0 down to 0 at t = 1.

Training draws t uniformly; parallel decoding walks t = 1/S, 2/S, ..., 1 (MaskGIT, arXiv 2202.04200, section 3.1).
"""

import math
from typing import Any, TypeVar, get_args

import torch

from titokctl.config.recipe import MaskScheduleName

SCHEDULES = get_args(MaskScheduleName)
T = TypeVar("T", float, torch.Tensor)


def mask_ratio(t: T, schedule: str) -> T:
    """Return the share of masked tokens at time `t`.

    Args:
        t: a number or a float tensor of any shape, in [0, 1].
        schedule: one of `SCHEDULES`.

    Returns: the same kind and shape as `t`, in [0, 1].
    Raises: ValueError for an unknown schedule.
    """
    # math and torch share the names of these functions; plain numbers stay plain, in double precision.
    library: Any = torch if isinstance(t, torch.Tensor) else math
    if schedule == "arccos":
        return library.acos(t) / (math.pi * 0.5)
    if schedule == "cosine":
        return library.cos(t * (math.pi * 0.5))
    if schedule == "linear":
        return 1 - t
    if schedule == "root":
        return 1 - library.sqrt(t)
    raise ValueError(f"unknown mask schedule {schedule!r}: expected one of {', '.join(SCHEDULES)}")


def tokens_left(num_tokens: int, num_steps: int, schedule: str = "arccos") -> list[int]:
    """Return how many of `num_tokens` stay masked after each of `num_steps` decoding steps.

    Every step but the last leaves at least one token masked, and settles at least one while more than one is open;
    after the last nothing is masked. With more steps than tokens the surplus draws the last open token again.

    Returns: `num_steps` plain numbers that never rise; the last is 0.
    """
    left, before = [], num_tokens
    for step in range(1, num_steps):
        wanted = math.floor(num_tokens * mask_ratio(step / num_steps, schedule))
        before = max(1, min(before - 1, wanted))
        left.append(before)
    return [*left, 0]
