"""fid and stats in several processes: the numbers of one, and one error told once."""

import numpy as np
import pytest
import toy_features
from PIL import Image

from titokctl.context import Context
from titokctl.evaluation.extractors import FeatureNetwork
from titokctl.formats.statistics import read_statistics
from titokctl.jobs.evaluate.fid import Fid


def noise(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 24, 24, 3), dtype=np.uint8)


def folder_of(path, images: np.ndarray):
    path.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(path / f"{i:03d}.png")
    return path


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The environment with the toy network, here and in processes."""
    monkeypatch.syspath_prepend(tmp_path / "package")
    return toy_features.install(tmp_path / "package")


def alone(samples, reference, runs, **settings):
    return Fid(samples, reference, network=FeatureNetwork("toy"), **settings).run(Context(runs))


@pytest.mark.parametrize("procs", [3, pytest.param(2, marks=pytest.mark.slow)])
def test_numbers_and_files_are_those_of_one_process(toy, tmp_path, run_cli, procs):
    np.savez(tmp_path / "a.npz", noise(5_030, 0))  # two splits of the Inception score
    reference = folder_of(tmp_path / "b", noise(37, 1))
    (reference / "007.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    words = ("--ref", "b", "--features", "toy", "--procs", procs, "--skip-bad", "--save-features", "--json")
    done = run_cli("fid", "a.npz", *words, env=toy, code=0)
    kept = (tmp_path / "a.evaluation-toy.npz").read_bytes()
    (tmp_path / "a.evaluation-toy.npz").unlink()
    one = alone(tmp_path / "a.npz", reference, tmp_path / "other", skip_bad=True, save_features=True)
    assert done.json["metrics"] == pytest.approx(one.metrics, rel=1e-9)
    assert {"fd-toy", "sfid-toy", "is-toy", "precision-toy", "kid-toy"} < one.metrics.keys()
    assert done.json["samples"] | {"path": ""} == one.samples | {"path": ""}
    assert done.stderr.count("1 of 37 images") == 1
    ours = tmp_path / "three.npz"
    ours.write_bytes(kept)
    many, single = read_statistics(ours), read_statistics(tmp_path / "a.evaluation-toy.npz")
    assert np.array_equal(many.features, single.features)
    assert len(many.score_sums) == 2
    np.testing.assert_allclose(many.score_sums, single.score_sums, rtol=1e-12)
    np.testing.assert_allclose(many.covariance, single.covariance, rtol=1e-9, atol=1e-15)
    assert many.about["key"] == single.about["key"]


@pytest.mark.slow
def test_more_processes_than_images_and_one_error(toy, tmp_path, run_cli):
    folder = folder_of(tmp_path / "few", noise(6, 0))
    made = run_cli("stats", "few", "-o", "ref.npz", "--features", "toy", "--procs", 3, "--json", env=toy, code=0)
    assert made.json["images"] == 6
    pixels = np.stack([np.asarray(Image.open(p)) for p in sorted(folder.iterdir())]) / 255
    np.testing.assert_allclose(read_statistics(tmp_path / "ref.npz").mean[:3], pixels.mean((0, 1, 2)), atol=1e-6)
    Image.fromarray(noise(1, 2)[0, :20]).save(folder / "005.png")
    words = ("stats", "few", "-o", "ref.npz", "--features", "toy", "--procs", 2)
    again = run_cli(*words, env=toy, code=1)
    assert "made with other settings" in again.stderr
    wrong = run_cli(*words, "--overwrite", env=toy, code=1)
    assert wrong.stderr.count("different sizes") == 1
