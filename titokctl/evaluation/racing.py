"""A race between settings: successive halving on common random numbers, and a last comparison on unseen images.

Setting 0 is the preset, the others are challengers. In each round every setting that is left is measured on the same
images, twice as many as in the round before, and the better half of the challengers stays (successive halving, arXiv
1502.07943); those that are worse than the best one beyond chance leave at once. The finalists and the preset are then
compared on images that no round has seen: the choice among many settings makes the measured value of the best one too
good, and only images that had no part in the choice show its true value. A finalist is proposed if its value is lower
than the preset's with a p-value below 0.05, corrected for the number of finalists.

The race is a pure function of the numbers that `measure` returns. Letters: C settings, n images.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from titokctl.evaluation.frechet import PairedTest, holm, paired_test

PRESET = 0
SIGNIFICANT = 0.05
FINALISTS = 2
_RACING_SHARE = 0.5  # of the budget; the rest is for the last comparison


@dataclass(frozen=True)
class Score:
    """The value of a metric, lower is better, and the influence of each image on it, (n,) float64 (`paired_test`)."""

    value: float
    influences: np.ndarray


# The score of setting number i on the images of a range; image j of all settings has the same label and noise.
Measure = Callable[[int, range], Score]


@dataclass(frozen=True)
class Budget:
    """The cost of a race.

    Args:
        total: the largest cost of the whole race, in any unit.
        costs: (C,) cost of one image of each setting, in that unit.
        tile: images are measured in multiples of it.
        least: number of images of a setting below which its score has no meaning.
    """

    total: float
    costs: Sequence[float]
    tile: int
    least: int = 2

    @property
    def first_round(self) -> int:
        """Return the number of images of each setting in the first round, a multiple of `tile`; 0 for too few."""
        count = self._whole_tiles(_RACING_SHARE * self.total / self._cost_of_rounds)
        return count if count >= self.least else 0

    @property
    def least_tiles(self) -> int:
        """Return the least number of images in a round: `least`, rounded up to a multiple of `tile`."""
        return math.ceil(self.least / self.tile) * self.tile

    @property
    def needed(self) -> float:
        """Return the least `total` that pays for all rounds."""
        return self.least_tiles * self._cost_of_rounds / _RACING_SHARE

    @property
    def _cost_of_rounds(self) -> float:
        """Return the cost of all rounds for each image of the first one; those that stay have the mean cost."""
        racing = challengers_by_round(len(self.costs) - 1)
        # A round doubles the images of those that are left: its own images are as many as all before it.
        images = sum((left + 1) * (1 if i == 0 else 2 ** (i - 1)) for i, left in enumerate(racing))
        return images * sum(self.costs) / len(self.costs)

    def last_round(self, spent: float, settings: Sequence[int]) -> int:
        """Return the number of unseen images of each of `settings` that the rest pays for, a multiple of `tile`."""
        return self._whole_tiles((self.total - spent) / sum(self.costs[i] for i in settings))

    def _whole_tiles(self, images: float) -> int:
        return math.floor(images / self.tile + 1e-9) * self.tile


@dataclass(frozen=True)
class Standing:
    """The last measurement of a setting in the rounds; `rounds` is the number of rounds that it took part in."""

    setting: int
    rounds: int
    images: int
    value: float


@dataclass(frozen=True)
class Verdict:
    """The last comparison of a finalist with the preset, on `images` unseen images of each.

    `test.difference` is the finalist minus the preset; `p_corrected` is its p-value after Holm's correction for the
    number of finalists.
    """

    setting: int
    images: int
    value: float
    preset_value: float
    test: PairedTest
    p_corrected: float

    @property
    def is_better(self) -> bool:
        """True if the finalist is lower than the preset beyond chance."""
        return self.test.difference < 0 and self.p_corrected < SIGNIFICANT


@dataclass(frozen=True)
class Race:
    """The result of a race: all settings by number, the verdicts on the finalists, and the proposed setting.

    `proposed` is `PRESET` unless a finalist is better.
    """

    standings: list[Standing]
    verdicts: list[Verdict]
    proposed: int


def race(budget: Budget, measure: Measure) -> Race:
    """Run a race.

    Args:
        budget: names the settings by their costs.
        measure: called with ranges that begin at 0 in the rounds, and at the end of the last round's in the end.

    Raises ValueError before the first round when the budget does not pay for all rounds.
    """
    count, spent = budget.first_round, 0.0
    if count == 0:
        raise ValueError(f"a budget of {budget.total} is too small for {len(budget.costs)} settings")
    left, seen, standings = list(range(1, len(budget.costs))), 0, dict[int, Standing]()
    for number, size in enumerate(challengers_by_round(len(left)), start=1):
        left = left[:size]
        scores = {i: measure(i, range(count)) for i in (PRESET, *left)}
        spent += (count - seen) * sum(budget.costs[i] for i in scores)
        standings |= {i: Standing(i, number, count, score.value) for i, score in scores.items()}
        left = _still_racing(left, scores)
        seen, count = count, 2 * count
    finalists = left[:FINALISTS]
    # Settings that cost far more than the mean can exceed the budget here: without a comparison, all was in vain.
    last = max(budget.last_round(spent, (PRESET, *finalists)), budget.least_tiles)
    verdicts = _verdicts(finalists, range(seen, seen + last), measure)
    better = [verdict for verdict in verdicts if verdict.is_better]
    proposed = min(better, key=lambda verdict: verdict.value).setting if better else PRESET
    return Race([standings[i] for i in sorted(standings)], verdicts, proposed)


def challengers_by_round(challengers: int) -> list[int]:
    """Return how many challengers take part in each round at most: halved until the finalists are left."""
    rounds = [challengers]
    while rounds[-1] > 2 * FINALISTS - 1:
        rounds.append(math.ceil(rounds[-1] / 2))
    return rounds


def _still_racing(challengers: Sequence[int], scores: dict[int, Score]) -> list[int]:
    """Return the challengers from the best to the worst, without those that the best one beats beyond chance."""
    order = sorted(challengers, key=lambda i: (scores[i].value, i))
    best, others = scores[order[0]], order[1:]
    corrected = holm([_compared(scores[i], best).p for i in others])
    return [order[0], *(i for i, p in zip(others, corrected, strict=True) if p >= SIGNIFICANT)]


def _verdicts(finalists: Sequence[int], images: range, measure: Measure) -> list[Verdict]:
    preset = measure(PRESET, images)
    scores = [measure(i, images) for i in finalists]
    tests = [_compared(score, preset) for score in scores]
    corrected = holm([test.p for test in tests])
    return [
        Verdict(i, len(images), score.value, preset.value, test, p)
        for i, score, test, p in zip(finalists, scores, tests, corrected, strict=True)
    ]


def _compared(first: Score, second: Score) -> PairedTest:
    return paired_test(first.value, second.value, first.influences, second.influences)
