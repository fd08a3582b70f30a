"""--selftest: a table of published and measured numbers, and an exit code that says whether they agree."""

import json

import numpy as np
import pytest
import toy_features

from titokctl.cli.app import run
from titokctl.context import Context
from titokctl.evaluation.extractors import FeatureNetwork
from titokctl.jobs.evaluate.selftest import PUBLISHED, Expected, Selftest
from titokctl.jobs.evaluate.stats import Stats

TOY = FeatureNetwork("toy")


def noise(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 24, 24, 3), dtype=np.uint8)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Samples, and a reference in the form of ADM's: statistics and images in one file."""
    monkeypatch.syspath_prepend(tmp_path / "package")
    toy_features.install(tmp_path / "package")
    np.savez(tmp_path / "samples.npz", noise(40, 0))
    images = noise(30, 1)
    np.savez(tmp_path / "images.npz", images)
    made = tmp_path / "stats.npz"
    Stats([tmp_path / "images.npz"], made, TOY).run(Context(tmp_path))
    with np.load(made) as found:
        arrays = {name: found[name] for name in ("mu", "sigma", "mu_s", "sigma_s")}
    np.savez(tmp_path / "adm.npz", **arrays, arr_0=images)
    return tmp_path / "samples.npz", tmp_path / "adm.npz"


def check(files, expected):
    return Selftest(*files, TOY, expected).run(Context(files[0].parent / "runs"))


def test_numbers_within_their_tolerance_pass_and_others_fail(files):
    first = check(files, {name: Expected(0.0, 1e9) for name in PUBLISHED})
    assert first.passed
    measured = {c.metric: c.measured for c in first.checks}
    assert measured.keys() == PUBLISHED.keys()
    assert first.evaluation.metrics["fd-toy"] == measured["fid"]
    exact = {name: Expected(value, 1e-9) for name, value in measured.items()}
    assert check(files, exact).passed
    off = check(files, exact | {"sfid": Expected(measured["sfid"] + 1e-3, 9e-4)})
    assert not off.passed
    assert [c.metric for c in off.checks if not c.passed] == ["sfid"]


def test_the_published_figures_are_those_of_adm():
    quoted = {"is": 215.84, "fid": 3.943, "sfid": 6.140, "precision": 0.8265, "recall": 0.5309}
    assert {name: expected.value for name, expected in PUBLISHED.items()} == quoted
    assert all(expected.tolerance <= 0.02 * expected.value for expected in PUBLISHED.values())


def test_the_command_prints_the_table_and_fails_when_a_number_is_off(files, tmp_path, capsys):
    words = ["fid", "--selftest", *map(str, files), "--features", "toy", "--runs-dir", str(tmp_path / "runs"), "-q"]
    assert run(words) == 1
    table = capsys.readouterr().out
    assert "FAIL" in table
    assert "215.84" in table
    assert run([*words, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["passed"] is False
    assert run([*words, "--ref", "other.npz"]) == 2
    assert "takes its own samples and reference" in capsys.readouterr().err
