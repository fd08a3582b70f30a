"""Settings of sampling and of classifier-free guidance."""

from typing import Literal

from pydantic import field_validator

from titokctl.config.base import Config, Fraction, NonNegativeFloat, PositiveFloat, PositiveInt
from titokctl.config.registry import known_names

GuidanceSchedule = Literal["constant", "linear", "power-cosine"]
UNMASKING_ENTRY_POINTS = "titokctl.unmasking_rules"
CONFIDENCE, RANDOM_ORDER, REMASKING = UNMASKING_RULES = ("confidence", "random-order", "remasking")


class SamplingConfig(Config):
    """Settings of sampling.

    `guidance_scale` is the s of l = c + s x ramp x (c - u): 0 switches guidance off, and DiT's or diffusers' scale is
    this one plus 1. `choice_temperature` scales the Gumbel noise of step k by (1 - (k + 1) / num_steps). `unmasking`
    names the rule by which MaskGIT chooses the positions that it decides in a step; the rule "remasking" masks up to
    the share `remasking_cap` of the decided positions again.
    """

    num_steps: PositiveInt = 8
    guidance_scale: NonNegativeFloat = 4.5
    guidance_schedule: GuidanceSchedule = "linear"
    guidance_power: PositiveFloat = 3.0
    choice_temperature: NonNegativeFloat = 9.5
    softmax_annealing: bool = True
    unmasking: str = CONFIDENCE
    remasking_cap: Fraction = 0.1
    seed: int = 0

    @field_validator("unmasking")
    @classmethod
    def _rule_is_known(cls, name: str) -> str:
        if name not in UNMASKING_RULES and name not in (known := known_names(UNMASKING_RULES, UNMASKING_ENTRY_POINTS)):
            raise ValueError(f"unknown unmasking rule {name!r}; known here: {', '.join(known)}")
        return name
