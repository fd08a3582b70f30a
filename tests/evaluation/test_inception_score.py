"""The Inception score against plain numpy, and its two extremes."""

import numpy as np
import pytest

from titokctl.evaluation.inception_score import ScoreSums, score_of, starts_of


def by_numpy(logits: np.ndarray, split: int) -> list[float]:
    scores = []
    for first in range(0, len(logits), split):
        part = logits[first : first + split].astype(float)
        p = np.exp(part - part.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        scores.append(np.exp((p * (np.log(p) - np.log(p.mean(0)))).sum(1).mean()))
    return scores


def inception_score(logits: np.ndarray, split_size: int = 5000) -> tuple[float, float]:
    sums = ScoreSums(logits.shape[1], np.arange(0, max(1, len(logits)), split_size))
    sums.add(np.arange(len(logits)), logits)
    return score_of(sums.table)


def test_agrees_with_numpy_also_with_a_shorter_last_split():
    logits = (np.random.default_rng(0).standard_normal((110, 20)) * 3).astype(np.float32)
    (mean, deviation), expected = inception_score(logits, split_size=40), by_numpy(logits, 40)
    assert len(expected) == 3
    assert mean == pytest.approx(np.mean(expected), rel=1e-9)
    assert deviation == pytest.approx(np.std(expected), rel=1e-6)


def test_parts_in_any_order_add_up_to_the_whole():
    logits = (np.random.default_rng(1).standard_normal((100, 6)) * 3).astype(np.float32)
    whole, parts = inception_score(logits, split_size=30), [ScoreSums(6, np.arange(0, 100, 30)) for _ in range(2)]
    for i, first in enumerate(range(0, 100, 7)):
        places = np.arange(first, min(first + 7, 100))
        parts[i % 2].add(places, logits[places])
    parts[1].table += parts[0].table
    assert score_of(parts[1].table) == pytest.approx(whole, rel=1e-12)


def test_all_alike_scores_1_and_all_sure_and_different_scores_the_number_of_classes():
    assert inception_score(np.ones((50, 8), np.float32))[0] == pytest.approx(1)
    assert inception_score(np.eye(8, dtype=np.float32).repeat(5, 0) * 1000)[0] == pytest.approx(8)


def test_sorted_classes_score_lower_than_mixed_ones():
    sorted_by_class = np.eye(8, dtype=np.float32).repeat(10, 0) * 20
    mixed = sorted_by_class.reshape(8, 10, 8).transpose(1, 0, 2).reshape(80, 8)
    assert inception_score(sorted_by_class, 20)[0] < inception_score(mixed, 20)[0] - 3


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="at least one image"):
        inception_score(np.zeros((0, 8), np.float32))


@pytest.mark.parametrize("images", [10, 12, 97, 5000])
def test_a_number_of_splits_divides_the_set_as_other_programs_do(images):
    parts = [len(range(i * images // 10, (i + 1) * images // 10)) for i in range(10)]
    starts = starts_of(images, 10)
    assert np.diff([*starts, images]).tolist() == parts


def test_by_default_splits_are_of_5000_images():
    assert starts_of(50_000).tolist() == list(range(0, 50_000, 5000))
    assert starts_of(7_000).tolist() == [0, 5000]
    assert starts_of(10).tolist() == [0]
