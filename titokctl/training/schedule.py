"""The learning rate as a function of the step."""

import math

from titokctl.config.training import ScheduleConfig


def learning_rate(step: int, base: float, schedule: ScheduleConfig, total_steps: int) -> float:
    """Learning rate of optimizer step `step` (0-based): base x step / warm-up at first, then the schedule.

    The first of the warm-up steps therefore has 0, as in the official code. From `total_steps` on the rate stays at
    its end.
    """
    if step < schedule.warmup_steps:
        return base * step / schedule.warmup_steps
    if schedule.kind == "constant":
        return base
    done = min(1.0, (step - schedule.warmup_steps) / max(1, total_steps - schedule.warmup_steps))
    return schedule.end_learning_rate + (base - schedule.end_learning_rate) * (1 + math.cos(math.pi * done)) / 2
