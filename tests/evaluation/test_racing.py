"""The race between settings: it proposes what is better, and nothing else."""

import numpy as np
import pytest

from titokctl.evaluation.features import FeatureSet
from titokctl.evaluation.frechet import gaussian_of, holm, paired_test
from titokctl.evaluation.metrics import kernel_distance
from titokctl.evaluation.paired_metrics import paired_metric
from titokctl.evaluation.racing import PRESET, Budget, Race, Score, challengers_by_round, race

SETTINGS, TILE = 24, 16


class Means:
    """A metric that is the mean of numbers of images: of the setting, common to all settings, and noise of its own."""

    def __init__(self, seed: int, better: dict[int, float] | None = None, common: float = 1.0) -> None:
        self._seed, self._better, self._common = seed, better or {}, common
        self.asked: list[tuple[int, range]] = []

    def __call__(self, setting: int, images: range) -> Score:
        self.asked.append((setting, images))
        shared = np.random.default_rng([self._seed, 0]).normal(size=100_000)[images.start : images.stop]
        own = np.random.default_rng([self._seed, 1 + setting]).normal(size=100_000)[images.start : images.stop]
        values = self._common * shared + own - self._better.get(setting, 0.0)
        return Score(float(values.mean()), values)


def budget(total: float = 40_000, settings: int = SETTINGS, **changes: object) -> Budget:
    return Budget(**{"total": total, "costs": [1.0] * settings, "tile": TILE, **changes})


def drawn(measure: Means) -> dict[int, int]:
    """The number of different images of every setting."""
    seen: dict[int, set[int]] = {}
    for setting, images in measure.asked:
        seen.setdefault(setting, set()).update(images)
    return {setting: len(images) for setting, images in seen.items()}


def last_comparison(measure: Means) -> range:
    return measure.asked[-1][1]


def test_with_a_null_metric_a_change_is_proposed_at_most_once_in_20_repetitions():
    assert sum(race(budget(), Means(seed)).proposed != PRESET for seed in range(20)) <= 1


def test_a_setting_that_is_better_is_found():
    found = [race(budget(), Means(seed, {17: 0.3})) for seed in range(20)]
    assert [each.proposed for each in found].count(17) >= 19


def test_settings_that_are_worse_than_the_preset_are_not_proposed():
    worse = {i: -0.3 - i / 100 for i in range(1, SETTINGS)}
    found = race(budget(), Means(0, worse))
    assert found.proposed == PRESET
    assert all(verdict.test.difference > 0 and not verdict.is_better for verdict in found.verdicts)


def test_a_small_improvement_needs_pairs_and_is_not_claimed_from_few_images():
    small = {5: 0.15}
    assert race(budget(), Means(3, small, common=30.0)).proposed == 5, "what is common to both settings cancels"
    assert race(budget(4_000), Means(3, small, common=0.0)).proposed == PRESET


def test_the_last_comparison_is_on_images_that_no_round_has_seen():
    measure = Means(0)
    found = race(budget(), measure)
    last = last_comparison(measure)
    rounds = [images for _, images in measure.asked if images != last]
    assert all(images.start == 0 and images.stop <= last.start for images in rounds)
    assert all(verdict.images == len(last) for verdict in found.verdicts)


@pytest.mark.parametrize("total", [4_000, 10_000, 40_000])
@pytest.mark.parametrize("costs", [[1.0] * SETTINGS, [0.5 + i / 10 for i in range(SETTINGS)], [2.0, 3.0]])
def test_the_budget_is_kept_and_mostly_used(total, costs):
    measure = Means(1)
    race(budget(total, costs=costs), measure)
    spent = sum(count * costs[setting] for setting, count in drawn(measure).items())
    assert 0.8 * total < spent <= total
    assert all(images.start % TILE == images.stop % TILE == 0 for _, images in measure.asked)


def test_each_round_doubles_the_images_and_keeps_the_better_half():
    found = race(budget(), Means(2))
    rounds = challengers_by_round(SETTINGS - 1)
    assert rounds == [23, 12, 6, 3]
    assert len(found.standings) == SETTINGS
    first = min(standing.images for standing in found.standings)
    for standing in found.standings:
        assert standing.images == first * 2 ** (standing.rounds - 1)
    for number, size in enumerate(rounds, start=1):
        assert sum(s.rounds >= number for s in found.standings if s.setting != PRESET) <= size


def test_what_is_worse_beyond_chance_leaves_at_once():
    bad = {i: -3.0 for i in range(1, SETTINGS) if i != 7}
    found = race(budget(), Means(0, bad))
    assert [s.setting for s in found.standings if s.rounds > 1] == [PRESET, 7]
    assert [verdict.setting for verdict in found.verdicts] == [7]


def test_the_same_numbers_give_the_same_race():
    def key(found: Race) -> object:
        return found.standings, found.verdicts, found.proposed

    assert key(race(budget(), Means(5, {3: 0.1}))) == key(race(budget(), Means(5, {3: 0.1})))


def test_too_small_a_budget_is_refused():
    assert budget(300).first_round == 0
    with pytest.raises(ValueError, match="too small for 24 settings"):
        race(budget(300), Means(0))
    assert budget(40_000, least=1_000).first_round == 0


def test_holm_multiplies_the_smallest_most():
    assert holm([0.03, 0.01, 0.5]) == pytest.approx([0.06, 0.03, 0.5])
    assert holm([0.04, 0.03, 0.9]) == pytest.approx([0.09, 0.09, 0.9])
    assert holm([]) == []


def normal(count: int, seed: int, shift: float = 0.0, width: int = 12) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(count, width)) + shift).astype(np.float32)


def reference_of(rows: np.ndarray) -> FeatureSet:
    return FeatureSet(len(rows), gaussian_of(rows), features=rows)


def test_the_score_is_the_kernel_distance_and_a_row_changes_it_by_its_influence():
    x, y = normal(400, 0), normal(300, 1, shift=0.4)
    found = paired_metric("kid").against(reference_of(y))(x)
    assert found.value == pytest.approx(kernel_distance(x, y), rel=1e-9)
    for row in (0, 17, 250):
        step = kernel_distance(x, y) - kernel_distance(np.delete(x, row, 0), y)
        assert step == pytest.approx((found.influences[row] - found.influences.mean()) / len(x), rel=0.03)


def test_the_standard_error_from_influences_is_the_deviation_over_draws():
    score = paired_metric("kid").against(reference_of(normal(500, 1, shift=0.3)))
    draws = [score(normal(150, seed)) for seed in range(2, 122)]
    errors = [found.influences.std(ddof=1) / len(found.influences) ** 0.5 for found in draws]
    assert np.mean(errors) == pytest.approx(np.std([found.value for found in draws]), rel=0.2)


@pytest.mark.parametrize("name", ["kid", "fid"])
def test_settings_of_one_distribution_are_told_apart_as_rarely_as_the_p_value_says(name):
    score = paired_metric(name).against(reference_of(normal(600, 1, shift=0.3, width=4)))
    small = []
    for seed in range(200):
        first, second = (score(normal(80, 2 * seed + i + 10, width=4)) for i in range(2))
        small.append(paired_test(first.value, second.value, first.influences, second.influences).p < 0.05)
    assert 1 <= sum(small) <= 22, "the expectation is 10; 22 has a probability of 0.04 %"
