"""compare: kept results side by side, and a paired test of their differences."""

import json
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import toy_features
from PIL import Image

from titokctl.cli.app import run
from titokctl.context import Context
from titokctl.errors import UsageError, UserError
from titokctl.evaluation.extractors import FeatureNetwork
from titokctl.jobs.evaluate.compare import Compare
from titokctl.jobs.evaluate.fid import Fid

TOY = FeatureNetwork("toy")


def noise(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 24, 24, 3), dtype=np.uint8)


def mixed(shared: np.ndarray, seed: int, spread: int = 40) -> np.ndarray:
    """Images that have much in common with `shared`, image by image."""
    own = np.random.default_rng(seed).integers(-spread, spread + 1, shared.shape)
    return np.clip(shared + own, 0, 255).astype(np.uint8)


@pytest.fixture
def sets(tmp_path, monkeypatch):
    """Two sets that differ by chance alone, one that is worse, and a reference."""
    monkeypatch.syspath_prepend(tmp_path / "package")
    toy_features.install(tmp_path / "package")
    shared = noise(120, 0)
    np.savez(tmp_path / "a.npz", mixed(shared, 1))
    np.savez(tmp_path / "b.npz", mixed(shared, 2))
    np.savez(tmp_path / "worse.npz", mixed(shared, 3) // 2)
    np.savez(tmp_path / "ref.npz", noise(150, 9))
    return tmp_path


def go(root, *names: str, **settings):
    settings = {"network": TOY, "reference": root / "ref.npz"} | settings
    return Compare([str(root / name) for name in names], **settings).run(Context(root / "runs"))


def judge(root, name: str, **settings):
    return Fid(root / name, root / "ref.npz", network=TOY, **settings).run(Context(root / "runs"))


def test_luck_is_told_from_a_difference(sets):
    found = go(sets, "a.npz", "b.npz", "worse.npz")
    assert [j.metrics["fd-toy"] for j in found.results] == [
        pytest.approx(judge(sets, name).metrics["fd-toy"]) for name in ("a.npz", "b.npz", "worse.npz")
    ]
    by_pair = {(t.first[-7:], t.second[-7:]): t for t in found.tests}
    alike, worse = found.tests[0], found.tests[1]
    assert len(by_pair) == 3
    assert alike.p_of_all > 0.05
    assert worse.p_of_all < 1e-6
    assert worse.difference < 0
    assert alike.difference == found.results[0].metrics["fd-toy"] - found.results[1].metrics["fd-toy"]
    assert all(test.is_paired and test.p <= test.p_of_all for test in found.tests)


def test_what_images_have_in_common_makes_the_test_sharper(sets):
    paired = go(sets, "a.npz", "b.npz").tests[0]
    np.savez(sets / "c.npz", mixed(noise(121, 5), 2))
    unpaired = go(sets, "a.npz", "c.npz").tests[0]
    assert not unpaired.is_paired
    assert paired.standard_error < 0.8 * unpaired.standard_error


def test_kept_results_need_no_reference_and_kept_features_no_network(sets, monkeypatch):
    for name in ("a.npz", "b.npz"):
        judge(sets, name, save_features=True)

    shutil.rmtree(sets / "package")  # the network can't be loaded any more
    monkeypatch.delitem(sys.modules, "toy_elsewhere")
    by_file = [f"{name}.evaluation-toy.json" for name in ("a", "b")]
    by_file, by_set = go(sets, *by_file, reference=None), go(sets, "a.npz", "b.npz", reference=None)
    assert [(t.difference, t.p) for t in by_file.tests] == [(t.difference, t.p) for t in by_set.tests]
    assert len(by_set.tests) == 1


def test_what_cannot_be_tested_is_said(sets):
    for name in ("a.npz", "b.npz"):
        judge(sets, name)
    np.savez(sets / "few.npz", noise(10, 3))
    np.savez(sets / "other.npz", noise(40, 8))
    assert "10 images, at least 18 needed" in go(sets, "a.npz", "few.npz").remarks[0]
    Fid(sets / "b.npz", sets / "other.npz", network=TOY).run(Context(sets))
    different = go(sets, "a.npz", "b.npz", reference=None)
    assert "different references" in different.remarks[0]
    assert len(different.results) == 2
    assert len(different.remarks) == 1
    assert len(go(sets, "a.npz", "b.npz").tests) == 1  # b.npz was judged on this reference, too, and that is kept
    np.savez(sets / "a.npz", noise(120, 77) // 3)
    assert "a.npz has changed since" in go(sets, "a.npz", "b.npz", reference=None).remarks[1]
    with pytest.raises(UserError, match=r"images of .*a\.npz changed since they were scored"):
        go(sets, "a.npz", "few.npz")
    with pytest.raises(UsageError, match="two different sets"):
        go(sets, "a.npz")


def test_the_command(sets, capsys):
    words = ["compare", *(str(sets / n) for n in ("a.npz", "worse.npz")), "--ref", str(sets / "ref.npz"),
             "--features", "toy", "--runs-dir", str(sets / "runs"), "--device", "cpu"]  # fmt: skip
    assert run(words) == 0
    shown = capsys.readouterr()
    assert "a.npz is lower" in shown.out
    assert "warning: a.npz" in shown.err
    assert run([*words, "--json", "-q"]) == 0
    assert len(json.loads(capsys.readouterr().out)["tests"]) == 1


def test_unreadable_images_of_the_reference_can_be_left_out_as_the_hint_says(sets, monkeypatch, capsys):
    """A command without the option names one that makes statistics, which it takes."""
    monkeypatch.chdir(sets)
    (sets / "photos").mkdir()
    for i, image in enumerate(noise(150, 9)):
        Image.fromarray(image).save(sets / "photos" / f"{i}.png")
    (sets / "photos" / "broken.png").write_bytes(b"no picture")
    words = ["compare", "a.npz", "b.npz", "--ref", "photos", "--features", "toy", "--runs-dir", "runs"]
    assert run(words) == 1
    assert "leave them out with --skip-bad" in capsys.readouterr().err
    assert run([*words, "--skip-bad"]) == 0
    assert "fd-toy" in capsys.readouterr().out
    with pytest.raises(UserError, match="1 of 151 images in photos can't be read") as caught:
        Fid(Path("worse.npz"), Path("photos"), network=TOY).run(Context(sets / "runs"))
    command = caught.value.hint.partition("use these: ")[2]
    assert run(shlex.split(command)[1:]) == 0
    Fid(Path("worse.npz"), Path("photos.npz"), network=TOY).run(Context(sets / "runs"))
