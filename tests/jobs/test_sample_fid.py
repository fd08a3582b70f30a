"""`titokctl sample --fid REF`: the numbers of `titokctl fid`, with and without images, resumed, and in processes."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import toy_features
import trained

from titokctl.cli.app import run
from titokctl.context import Context
from titokctl.distributed.stop import StopRequest
from titokctl.errors import EXIT_STOPPED, Stopped
from titokctl.jobs.sample.request import Sample
from titokctl.progress import SilentProgress

N = 300
IMAGE_SIZE = 24  # of the toy network


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    trained.generator_run(runs, trained.tokenizer_run(runs, image_size=IMAGE_SIZE))
    np.savez(runs / "ref.npz", np.random.default_rng(1).integers(0, 256, (40, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8))
    return runs


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Install the toy network for this process; returns the environment for others."""
    monkeypatch.syspath_prepend(tmp_path / "package")
    return toy_features.install(tmp_path / "package")


@pytest.fixture
def titokctl(toy, networks, capsys):
    def call(*words: object) -> dict:
        assert run([*map(str, words), "--runs-dir", str(networks), "--device", "cpu", "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return call


def judged(networks: Path, folder: Path, *more: object) -> tuple:
    return ("sample", "-n", N, "-o", folder, "--fid", networks / "ref.npz", "--features", "toy", *more)


def test_the_numbers_are_those_of_fid_on_the_same_images(titokctl, networks, tmp_path, run_cli, toy):
    kept = titokctl(*judged(networks, tmp_path / "kept", "--format", "npz"))
    images = tmp_path / "copy.npz"
    images.write_bytes((tmp_path / "kept" / "images.npz").read_bytes())
    metrics = titokctl("fid", images, "--ref", networks / "ref.npz", "--features", "toy")["metrics"]
    assert {"fd-toy", "sfid-toy", "is-toy", "precision-toy", "kid-toy"} < metrics.keys()
    assert kept["metrics"] == metrics
    without = titokctl(*judged(networks, tmp_path / "without"))
    assert without["metrics"] == metrics
    assert without["images"].endswith("ids.h5")
    names = {p.name for p in (tmp_path / "without").iterdir()}
    assert names == {".lock", "manifest.json", "ids.h5", "grid.png", "evaluation-toy.npz", "evaluation-toy.json"}
    words = [*judged(networks, tmp_path / "many"), "--runs-dir", networks, "--procs", 2, "--json"]
    assert run_cli(*words, env=toy, code=0).json["metrics"] == pytest.approx(metrics, rel=1e-9)


@pytest.mark.parametrize("form", ["none", "png"])
def test_scored_sets_are_compared_without_another_look_at_their_images(titokctl, networks, tmp_path, form, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed in (1, 2):
        titokctl(*judged(networks, Path(f"set-{seed}"), "--seed", seed, "--format", form))
    shutil.rmtree(tmp_path / "package")  # the network can't be loaded any more
    sys.modules.pop("toy_elsewhere", None)
    monkeypatch.chdir(networks)
    found = titokctl("compare", tmp_path / "set-1", tmp_path / "set-2", "--features", "toy")
    assert found["remarks"] == []
    assert len(found["tests"]) == 1


def test_features_of_finished_chunks_are_kept_and_the_metrics_too(titokctl, networks, tmp_path):
    whole = titokctl(*judged(networks, tmp_path / "whole"))
    stop = StopRequest()

    class StopsLate(SilentProgress):
        """Asks for a stop, as a signal while the second tile is drawn does."""

        def advance(self, n: int = 1, note: str = "") -> None:
            stop.adopt(EXIT_STOPPED)

    request = Sample(num_images=N, output=tmp_path / "set", fid=networks / "ref.npz", features="toy")
    with pytest.raises(Stopped, match="32 of 300 images kept"):
        request.run(Context(networks, progress=StopsLate(), stop=stop))
    assert titokctl(*judged(networks, tmp_path / "set"))["metrics"] == whole["metrics"]
    default = ("sample", "-n", N, "--fid", networks / "ref.npz", "--features", "toy")
    assert titokctl(*default)["metrics"] == whole["metrics"]
    again = titokctl(*default)
    assert again["images_per_second"] == 0
    assert again["metrics"] == whole["metrics"]


def test_one_image_is_refused_before_it_is_drawn(toy, networks, tmp_path, capsys):
    words = ["sample", "-n", 1, "-o", tmp_path / "one", "--fid", networks / "ref.npz", "--features", "toy"]
    assert run([*map(str, words), "--runs-dir", str(networks), "--device", "cpu"]) == 2
    assert "--fid needs at least 2 images, not 1" in capsys.readouterr().err
    assert not (tmp_path / "one").exists()


def test_a_missing_reference_is_refused_before_anything_is_drawn(toy, networks, tmp_path, capsys):
    words = ["sample", "-n", "4", "-o", tmp_path / "set", "--fid", tmp_path / "no.npz", "--features", "toy"]
    assert run([*map(str, words), "--runs-dir", str(networks), "--device", "cpu"]) == 1
    assert "no such file or folder" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()
