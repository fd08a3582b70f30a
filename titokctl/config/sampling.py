"""Settings of sampling and of classifier-free guidance."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from titokctl.config.base import Config, Fraction, NonNegativeFloat, PositiveFloat, PositiveInt
from titokctl.config.guidance_scale import both_forms
from titokctl.config.registry import known_names
from titokctl.readable import counted

GuidanceSchedule = Literal["constant", "linear", "power-cosine"]
UNMASKING_ENTRY_POINTS = "titokctl.unmasking_rules"
CONFIDENCE, RANDOM_ORDER, REMASKING = UNMASKING_RULES = ("confidence", "random-order", "remasking")


class GuidanceConfig(Config):
    """Settings of sampling that all kinds of generators share; each kind has a subclass with its own.

    `guidance_scale` is the s of l = c + s x ramp x (c - u): 0 switches guidance off, and DiT's or diffusers' scale is
    this one plus 1. Guidance is on in the steps k of S with A <= k / S < B, where `guidance_interval` is (A, B).
    """

    guidance_scale: NonNegativeFloat = 4.5
    guidance_schedule: GuidanceSchedule = "linear"
    guidance_power: PositiveFloat = 3.0
    guidance_interval: Annotated[tuple[Fraction, Fraction], Field(strict=False)] = (0.0, 1.0)
    seed: int = 0

    @field_validator("guidance_interval")
    @classmethod
    def _interval_rises(cls, interval: tuple[float, float]) -> tuple[float, float]:
        if interval[0] >= interval[1]:
            raise ValueError(f"should begin below its end, not {list(interval)}")
        return interval

    def as_changes(self) -> dict[str, Any]:
        """Return the settings as JSON values by name, as `sample` takes them: without those that mean nothing here."""
        return self.model_dump(mode="json")

    def in_words(self) -> str:
        """Return the settings for people, without the seed."""
        power = f" of power {self.guidance_power:g}" if self.guidance_schedule == "power-cosine" else ""
        begin, end = self.guidance_interval
        between = "" if (begin, end) == (0, 1) else f", between {begin:g} and {end:g} of the steps"
        return f"guidance {both_forms(self.guidance_scale)}, {self.guidance_schedule}{power}{between}"


class AutoregressiveSampling(GuidanceConfig):
    """Settings of sampling of an autoregressive generator; its steps are the ids of an image.

    An id is drawn from softmax(logits / `temperature`), restricted to the `top_k` most likely codes (null: all) and to
    the most likely codes whose probability reaches `top_p`. Temperature 0 takes the most likely code.
    """

    temperature: NonNegativeFloat = 1.0
    top_k: PositiveInt | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0

    def in_words(self) -> str:
        """Return the settings for people, without the seed."""
        top_k = "" if self.top_k is None else f", top-k {self.top_k}"
        top_p = "" if self.top_p == 1 else f", top-p {self.top_p:g}"
        return f"{super().in_words()}; temperature {self.temperature:g}{top_k}{top_p}"


class FlowSampling(GuidanceConfig):
    """Settings of sampling of a flow: equal steps of time; "heun" takes two passes a step, and is of second order."""

    num_steps: PositiveInt = 25
    solver: Literal["euler", "heun"] = "heun"

    def in_words(self) -> str:
        """Return the settings for people, without the seed."""
        return f"{self.num_steps} {self.solver.capitalize()} steps; {super().in_words()}"


class SamplingConfig(GuidanceConfig):
    """Settings of sampling of a MaskGIT.

    `choice_temperature` scales the Gumbel noise of step k by (1 - (k + 1) / num_steps). `unmasking`
    names the rule by which MaskGIT chooses the positions that it decides in a step; the rule "remasking" masks up to
    the share `remasking_cap` of the decided positions again.
    """

    num_steps: PositiveInt = 8
    choice_temperature: NonNegativeFloat = 9.5
    softmax_annealing: bool = True
    unmasking: str = CONFIDENCE
    remasking_cap: Fraction = 0.1

    def as_changes(self) -> dict[str, Any]:
        """As for all kinds; a cap without remasking is left out, since `sample` refuses it."""
        return self.model_dump(mode="json", exclude=set() if self.unmasking == REMASKING else {"remasking_cap"})

    def in_words(self) -> str:
        """Return the settings for people, without the seed."""
        annealing = "on" if self.softmax_annealing else "off"
        cap = f" of at most {self.remasking_cap:g}" if self.unmasking == REMASKING else ""
        unmasking = "" if self.unmasking == CONFIDENCE else f", unmasking by {self.unmasking}{cap}"
        steps = counted(self.num_steps, "steps")
        return (
            f"{steps}; {super().in_words()}; choice temperature {self.choice_temperature:g}, "
            f"softmax annealing {annealing}{unmasking}"
        )

    @field_validator("unmasking")
    @classmethod
    def _rule_is_known(cls, name: str) -> str:
        if name not in UNMASKING_RULES and name not in (known := known_names(UNMASKING_RULES, UNMASKING_ENTRY_POINTS)):
            raise ValueError(f"unknown unmasking rule {name!r}; known here: {', '.join(known)}")
        return name
