"""The learning rate as a function of the step."""

import math

from titokctl.config.training import ScheduleConfig


def learning_rate_scale(step: int, schedule: ScheduleConfig, total_steps: int) -> float:
    """Return the factor of the recipe's learning rates at optimizer step `step` (0-based).

    step / warm-up at first, so that the first step has 0 as in the official code, then the schedule towards
    `end_fraction`, where it stays from `total_steps` on.
    """
    if step < schedule.warmup_steps:
        return step / schedule.warmup_steps
    if schedule.kind == "constant":
        return 1.0
    if schedule.kind == "warmup-stable-decay":
        left = max(0, total_steps - step) / schedule.decay_steps
        return schedule.end_fraction + (1 - schedule.end_fraction) * min(1.0, left)
    done = min(1.0, (step - schedule.warmup_steps) / max(1, total_steps - schedule.warmup_steps))
    return schedule.end_fraction + (1 - schedule.end_fraction) * (1 + math.cos(math.pi * done)) / 2
