"""--save-features: features are used again until something changes."""

import json
import os

import numpy as np
import pytest
import tiny
import toy_features
from PIL import Image
from remarks import Remarks

from titokctl.context import Context
from titokctl.distributed.stop import StopRequest
from titokctl.errors import UserError
from titokctl.evaluation.extractors import FeatureNetwork
from titokctl.formats.evaluation import read_evaluations
from titokctl.jobs.evaluate.fid import Fid
from titokctl.jobs.tokenize.request import Tokenize

TOY = FeatureNetwork("toy")


def noise(n: int, seed: int, size: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def toy(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path / "package")
    toy_features.install(tmp_path / "package")
    np.savez(tmp_path / "ref.npz", noise(30, 9))


def judge(samples, tmp_path, **settings):
    remarks = Remarks()
    return Fid(samples, tmp_path / "ref.npz", network=TOY, **settings).run(
        Context(tmp_path / "runs", progress=remarks)
    ), remarks


def test_a_set_is_looked_at_once_and_the_numbers_stay(tmp_path):
    np.savez(tmp_path / "a.npz", noise(40, 0))
    first, looked = judge(tmp_path / "a.npz", tmp_path, save_features=True)
    assert f"start features of {tmp_path / 'a.npz'}" in looked
    assert "are kept in" in looked
    again, reread = judge(tmp_path / "a.npz", tmp_path)
    assert f"start features of {tmp_path / 'a.npz'}" not in reread
    assert again == first
    as_reference, _ = judge(tmp_path / "ref.npz", tmp_path)
    back = Fid(tmp_path / "ref.npz", tmp_path / "a.evaluation-toy.npz", network=TOY).run(Context(tmp_path))
    assert back.metrics["fd-toy"] == pytest.approx(first.metrics["fd-toy"], rel=1e-6)
    assert as_reference.metrics["fd-toy"] == pytest.approx(0, abs=1e-6)


def test_other_images_under_the_same_name_are_looked_at_again(tmp_path):
    np.savez(tmp_path / "a.npz", noise(40, 0))
    first, _ = judge(tmp_path / "a.npz", tmp_path, save_features=True)
    np.savez(tmp_path / "a.npz", noise(40, 1))
    second, remarks = judge(tmp_path / "a.npz", tmp_path)
    assert "was computed from other images or by another network, so it is not used" in remarks
    assert second.metrics["fd-toy"] != first.metrics["fd-toy"]


def test_a_file_of_the_same_name_size_and_time_is_told_apart(tmp_path):
    (tmp_path / "a").mkdir()
    for i, image in enumerate(noise(20, 0)):
        Image.fromarray(image).save(tmp_path / "a" / f"{i:03d}.png", compress_level=0)
    first, _ = judge(tmp_path / "a", tmp_path, save_features=True)
    assert judge(tmp_path / "a", tmp_path)[0].metrics == first.metrics
    changed = tmp_path / "a" / "004.png"
    before = changed.stat()
    Image.fromarray(noise(1, 7)[0]).save(changed, compress_level=0)
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert changed.stat().st_size == before.st_size
    assert judge(tmp_path / "a", tmp_path)[0].metrics != first.metrics


def test_another_decoder_in_the_same_file_is_told_apart(tmp_path):
    weights = tmp_path / "tok.safetensors"
    tiny.tokenizer(weights, image_size=24)
    folder = tiny.class_folder(tmp_path / "photos", per_class=6)
    with StopRequest() as stop:
        cache = tmp_path / "tokens.h5"
        Tokenize([folder], cache, str(weights)).run(Context(tmp_path / "runs", stop=stop))
    first, _ = judge(cache, tmp_path, tokenizer=str(weights), save_features=True)
    _, same = judge(cache, tmp_path, tokenizer=str(weights))
    assert f"start features of {cache}" not in same
    tiny.tokenizer(weights, seed=3, image_size=24)
    found, remarks = judge(cache, tmp_path, tokenizer=str(weights))
    assert "not used" in remarks
    assert found.metrics["fd-toy"] != first.metrics["fd-toy"]


def test_features_of_a_set_with_unreadable_images_are_not_kept(tmp_path):
    (tmp_path / "a").mkdir()
    for i, image in enumerate(noise(8, 0)):
        Image.fromarray(image).save(tmp_path / "a" / f"{i:03d}.png")
    (tmp_path / "a" / "003.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    found, remarks = judge(tmp_path / "a", tmp_path, save_features=True, skip_bad=True)
    assert found.samples["count"] == 7
    assert "the features are not kept: some images could not be read" in remarks
    assert not (tmp_path / "a" / "evaluation-toy.npz").exists()


def test_a_damaged_file_is_an_error_that_names_it(tmp_path):
    np.savez(tmp_path / "a.npz", noise(10, 0))
    judge(tmp_path / "a.npz", tmp_path, save_features=True)
    kept = tmp_path / "a.evaluation-toy.npz"
    kept.write_bytes(kept.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"a\.evaluation-toy\.npz is not an \.npz file"):
        judge(tmp_path / "a.npz", tmp_path)


def test_results_stay_until_the_images_change(tmp_path):
    """Metrics of one reference are in one result, other references in others; results of other images are deleted."""
    np.savez(tmp_path / "a.npz", noise(20, 0))
    np.savez(tmp_path / "other.npz", noise(12, 3))
    distance, _ = judge(tmp_path / "a.npz", tmp_path, metrics=["fid"])
    kernel, _ = judge(tmp_path / "a.npz", tmp_path, metrics=["kid"])
    Fid(tmp_path / "a.npz", tmp_path / "other.npz", ["fid"], TOY).run(Context(tmp_path / "runs"))
    newest, before = read_evaluations(tmp_path / "a.evaluation-toy.json")
    assert newest["reference"]["path"] == str(tmp_path / "other.npz")
    assert before["metrics"] == distance.metrics | kernel.metrics
    assert newest["key"] == before["key"]
    np.savez(tmp_path / "a.npz", noise(20, 1))
    again, _ = judge(tmp_path / "a.npz", tmp_path, metrics=["kid"])
    assert [kept["metrics"] for kept in read_evaluations(tmp_path / "a.evaluation-toy.json")] == [again.metrics]


def test_results_of_an_earlier_titokctl_and_damaged_ones(tmp_path):
    np.savez(tmp_path / "a.npz", noise(20, 0))
    judge(tmp_path / "a.npz", tmp_path, metrics=["fid"])
    path = tmp_path / "a.evaluation-toy.json"
    kept = json.loads(path.read_text())
    path.write_text(json.dumps({name: kept[name] for name in kept if name not in ("key", "earlier")}))
    assert [(old["metrics"], old["key"]) for old in read_evaluations(path)] == [(kept["metrics"], "")]
    for damage in ({"metrics": [1]}, {"earlier": [1]}, {"earlier": [{}]}, {"metrics": {"fid": "1"}}):
        path.write_text(json.dumps(kept | damage))
        with pytest.raises(UserError, match="is damaged"):
            read_evaluations(path)
    judge(tmp_path / "a.npz", tmp_path, metrics=["fid"])
    assert json.loads(path.read_text()) == kept
