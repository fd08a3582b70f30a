"""Speeds that a run on an H100 or H200 must reach, and what a record says of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Speeds = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Goal:
    """One speed.

    Args:
        name: as in the table of docs/results.md.
        speed, number: the record's speed, and its number, that are compared.
        wanted: the least share of the peak, or the largest number of seconds or share of the time.
        is_least: True where larger numbers are better.
    """

    name: str
    speed: str
    number: str
    wanted: float
    is_least: bool = False

    def found(self, speeds: Speeds) -> float | None:
        """Return the measured number; None where it was not measured."""
        value = speeds.get(self.speed, {}).get(self.number)
        return None if value is None else float(value)

    def is_met(self, value: float) -> bool:
        """Return True if `value` is good enough."""
        return value >= self.wanted if self.is_least else value <= self.wanted

    def in_words(self, value: float) -> str:
        """Return a number of this goal for people."""
        return f"{value:,.1f} s" if self.wanted > 1 else f"{value:.1%}"


GOALS = (
    Goal("ids of L-32, share of the bf16 peak", "encode titok-l-32 fp16", "of_peak", 0.60, True),
    Goal("more time in tiles than in one batch of 512", "tiles", "cost", 0.03),
    Goal("training L-32's generator, share of the peak", "train maskgit-vit-l-32", "of_peak", 0.52, True),
    Goal("training S-128's UViT, share of the peak", "train maskgit-uvit-s-128", "of_peak", 0.62, True),
    Goal("training waits for data, share of the time", "train maskgit-vit-l-32", "data_share", 0.05),
    Goal("50,000 samples of L-32", "50,000 images by proportion", "seconds", 80),
    Goal("features of 50,000 images, float32", "Inception, float32", "full_set_s", 60),
    Goal("features of 50,000 images, TF32", "Inception, tf32", "full_set_s", 30),
)


def table(speeds: Speeds) -> list[str]:
    """Return the lines of a table of all goals."""
    lines = ["| goal | wanted | found | |", "|---|---|---|---|"]
    for goal in GOALS:
        value = goal.found(speeds)
        sign = "at least" if goal.is_least else "at most"
        shown = (
            ("not measured", "")
            if value is None
            else (goal.in_words(value), "met" if goal.is_met(value) else "**not met**")
        )
        lines.append(f"| {goal.name} | {sign} {goal.in_words(goal.wanted)} | {shown[0]} | {shown[1]} |")
    return lines
