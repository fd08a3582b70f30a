"""Collected features and the metrics computed from them, by name."""

import numpy as np
import pytest
import typer

from titokctl.cli.app import app, run
from titokctl.evaluation.extractors import Extractor
from titokctl.evaluation.features import FeatureCollector, FeatureSet
from titokctl.evaluation.frechet import frechet_distance, gaussian_of
from titokctl.evaluation.inception_score import ScoreSums, score_of, starts_of
from titokctl.evaluation.metrics import METRICS, compute, kernel_distance

WIDTHS = {"pool": 5, "spatial": 3, "logits": 4}


def batches(n: int, seed: int, size: int = 7) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    whole = {name: rng.standard_normal((n, width)).astype(np.float32) for name, width in WIDTHS.items()}
    return [{name: x[i : i + size] for name, x in whole.items()} for i in range(0, n, size)]


def collected(n: int, seed: int, keep: int = 1000) -> FeatureSet:
    collector = FeatureCollector(WIDTHS, n, keep)
    for batch in batches(n, seed):
        collector.add(batch)
    return collector.result()


def test_a_collection_has_the_statistics_of_all_images():
    found = collected(100, 0)
    pool = np.concatenate([b["pool"] for b in batches(100, 0)])
    assert found.count == 100
    assert found.has_all_features
    assert np.array_equal(found.features, pool)
    np.testing.assert_allclose(found.pool.covariance, np.cov(pool.astype(float), rowvar=False), atol=1e-12)
    logits = np.concatenate([b["logits"] for b in batches(100, 0)])
    sums = ScoreSums(4, starts_of(100))
    sums.add(np.arange(100), logits)
    np.testing.assert_allclose(found.score_sums, sums.table)
    assert score_of(found.score_sums)[0] > 1


def test_kept_features_are_spread_over_the_set():
    found = collected(100, 0, keep=9)
    pool = np.concatenate([b["pool"] for b in batches(100, 0)])
    rows = [int(np.where((pool == row).all(1))[0][0]) for row in found.features]
    assert len(rows) == 9
    assert not found.has_all_features
    assert max(np.diff([-1, *rows])) <= 12
    assert min(np.diff(rows)) >= 11


def test_every_metric_gives_its_numbers_under_its_name():
    a, b = collected(60, 1), collected(50, 2)
    toy = Extractor("toy", lambda images: {}, WIDTHS, 1, "cpu")
    found = compute(list(METRICS.values()), a, b, toy.metric_name)
    assert found["fd-toy"] == pytest.approx(frechet_distance(gaussian_of(a.features), gaussian_of(b.features)))
    assert found["kid-toy_all_pairs"] == pytest.approx(kernel_distance(a.features, b.features))
    assert {"sfid-toy", "is-toy", "is-toy_deviation", "precision-toy", "recall-toy", "kid-toy"} < found.keys()
    assert found["fd-toy_standard_error"] > 0
    assert not any(name == "fid" or name.startswith("fid") for name in found)


def test_what_a_metric_lacks_is_said():
    a = collected(60, 1)
    bare = FeatureSet(0, a.pool)
    assert "mu_s" in METRICS["sfid"].lacking(a, bare)
    assert "no spatial part" in METRICS["sfid"].lacking(bare, a)
    assert "no classifier" in METRICS["is"].lacking(bare, a)
    assert "neither images nor features" in METRICS["kid"].lacking(a, bare)
    assert "at least 4" in METRICS["pr"].lacking(a, collected(3, 3))
    assert [name for name, metric in METRICS.items() if metric.lacking(a, collected(50, 2))] == []
    with pytest.raises(ValueError, match="kid can't be computed: the reference holds neither"):
        compute([METRICS["kid"]], a, bare, str)


def test_the_command_names_every_metric():
    """The help can't ask the table, whose import takes seconds."""
    assert run(["--version"]) == 0  # which registers the commands
    option = next(p for p in typer.main.get_command(app).commands["fid"].params if p.name == "metrics")
    assert option.metavar == ",".join(METRICS)
