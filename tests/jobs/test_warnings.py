"""Results say what was compared, and warn of everything that makes them hard to compare."""

import numpy as np
import pytest
import tiny
import toy_features
import trained
from PIL import Image

from titokctl.cli.app import run
from titokctl.context import Context
from titokctl.distributed.stop import StopRequest
from titokctl.errors import UserError
from titokctl.evaluation.extractors import FeatureNetwork, open_extractor
from titokctl.formats.atomic import file_sha256
from titokctl.jobs.evaluate.fid import Fid
from titokctl.jobs.sample.request import Sample
from titokctl.jobs.tokenize.request import Tokenize

SIZE = 24


@pytest.fixture(autouse=True)
def toy(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path / "package")
    toy_features.install(tmp_path / "package")


def noise(n: int, seed: int, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def judge(samples, reference, runs, **settings):
    return Fid(samples, reference, network=FeatureNetwork("toy"), **settings).run(Context(runs))


def warned(found, words: str) -> bool:
    return any(words in warning for warning in found.warnings)


def test_it_says_what_was_compared(tmp_path):
    np.savez(tmp_path / "a.npz", noise(40, 0))
    np.savez(tmp_path / "ref.npz", noise(30, 1))
    found = judge(tmp_path / "a.npz", tmp_path / "ref.npz", tmp_path / "runs")
    assert (found.samples["count"], found.samples["rounding"], found.reference["count"]) == (40, "none", 30)
    assert found.reference["sha256"] == file_sha256(next((tmp_path / "runs" / "statistics").iterdir()))
    assert found.extractor == {"name": "toy", "network": "colours", "device": "cpu"}
    assert {"network", "weights_sha256_start", "resize", "precision"} <= open_extractor("lite0").description.keys()


def test_the_command_says_it_too(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", noise(20, 0))
    words = ["fid", "a.npz", "--ref", "a.npz", "--features", "toy", "--metrics", "fid", "--device", "cpu"]
    files = [str(tmp_path / word) if word.endswith(".npz") else word for word in words]
    assert run([*files, "--runs-dir", str(tmp_path / "runs")]) == 0
    assert "(20 images, pixels as they are) against" in " ".join(capsys.readouterr().out.split())


def test_few_images_are_said_in_two_degrees(tmp_path):
    np.savez(tmp_path / "ref.npz", noise(30, 1))
    for n, words in ((8, "8 images, fewer than the 9 features: fd-toy says little, look at kid-toy"),
                     (40, "40 images: fd-toy is larger than it would be for 50,000")):  # fmt: skip
        np.savez(tmp_path / "a.npz", noise(n, 0))
        assert warned(judge(tmp_path / "a.npz", tmp_path / "ref.npz", tmp_path / "runs"), words)
    np.savez(tmp_path / "few.npz", noise(9, 1))
    found = judge(tmp_path / "a.npz", tmp_path / "few.npz", tmp_path / "runs")
    assert warned(found, "the reference has 9 images, fewer than the 9 features need")


def test_lossy_files_are_counted_and_exact_ones_are_not(tmp_path):
    np.savez(tmp_path / "ref.npz", noise(30, 1))
    (tmp_path / "a").mkdir()
    kinds = [("png", {}), ("webp", {"lossless": True}), ("webp", {"quality": 80}), ("jpg", {"quality": 95})] * 3
    for i, (image, (ending, how)) in enumerate(zip(noise(12, 0), kinds, strict=True)):
        Image.fromarray(image).save(tmp_path / "a" / f"{i:03d}.{ending}", **how)
    assert warned(judge(tmp_path / "a", tmp_path / "ref.npz", tmp_path / "runs"), "6 images from lossy files")


def test_another_resolution_is_said_and_mixed_ones_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", noise(30, 1))
    (tmp_path / "larger").mkdir()
    for i, image in enumerate(noise(3, 2, 32)):
        Image.fromarray(image).save(tmp_path / "larger" / f"{i}.png")
    found = judge(tmp_path / "larger", tmp_path / "a.npz", tmp_path / "runs")
    assert warned(found, "the samples are of 32 px, the reference of 24 px")
    Image.fromarray(noise(1, 3)[0]).save(tmp_path / "larger" / "9.png")
    with pytest.raises(UserError, match="images of different sizes: 0 is 32 x 32, 9 is 24 x 24"):
        judge(tmp_path / "larger", tmp_path / "a.npz", tmp_path / "runs")


@pytest.fixture
def reconstructions(tmp_path):
    """A token cache of an unbalanced folder, and its tokenizer."""
    weights = tmp_path / "tok.safetensors"
    tiny.tokenizer(weights, image_size=SIZE)
    folder = tiny.class_folder(tmp_path / "photos", per_class=6)
    for i in (4, 5):
        (folder / "dog" / f"{i:04d}.jpg").unlink()
    with StopRequest() as stop:
        cache = tmp_path / "tokens.h5"
        Tokenize([folder], cache, str(weights)).run(Context(tmp_path / "runs", stop=stop))
    return cache, str(weights)


def test_reconstructions_belong_to_their_originals(tmp_path, reconstructions):
    cache, weights = reconstructions
    own = judge(cache, None, tmp_path / "runs", tokenizer=weights)
    assert not warned(own, "these are reconstructions")
    assert warned(own, "not equally frequent")
    np.savez(tmp_path / "VIRTUAL_imagenet256_labeled.npz", noise(30, 1))
    other = judge(cache, tmp_path / "VIRTUAL_imagenet256_labeled.npz", tmp_path / "runs", tokenizer=weights)
    assert warned(other, "these are reconstructions: rFID compares them with their own originals")


def test_names_tell_what_files_do_not(tmp_path):
    for name in ("reconstructed", "samples"):
        np.savez(tmp_path / f"{name}.npz", noise(30, 0))
    np.savez(tmp_path / "VIRTUAL_imagenet256_labeled.npz", noise(30, 1))
    reference = tmp_path / "VIRTUAL_imagenet256_labeled.npz"
    assert warned(judge(tmp_path / "reconstructed.npz", reference, tmp_path / "runs"), "these are reconstructions")
    assert not warned(judge(tmp_path / "samples.npz", reference, tmp_path / "runs"), "these are reconstructions")


def test_samples_belong_to_the_training_set(tmp_path):
    runs = trained.both(tmp_path / "runs")
    with StopRequest() as stop:
        drawn = Sample(num_images=12).run(Context(runs, stop=stop))
    for name in ("val-256", "interval"):
        np.savez(tmp_path / f"{name}.npz", noise(30, 1, trained.SIZE))
    assert warned(judge(drawn.samples, tmp_path / "val-256.npz", runs), "val-256.npz looks like validation images")
    assert not warned(judge(drawn.samples, tmp_path / "interval.npz", runs), "validation")


def test_images_of_a_reference_like_adms_are_looked_at_once(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", noise(30, 0))
    np.savez(tmp_path / "adm.npz", mu=np.zeros(9), sigma=np.eye(9), mu_s=np.zeros(9), sigma_s=np.eye(9),
             arr_0=noise(20, 1))  # fmt: skip
    first = judge(tmp_path / "a.npz", tmp_path / "adm.npz", tmp_path / "runs")
    assert {"precision-toy", "kid-toy", "sfid-toy"} <= first.metrics.keys()
    kept = list((tmp_path / "runs" / "statistics").iterdir())
    assert len(kept) == 1
    before = kept[0].stat().st_mtime_ns
    assert judge(tmp_path / "a.npz", tmp_path / "adm.npz", tmp_path / "runs").metrics == first.metrics
    assert kept[0].stat().st_mtime_ns == before
    np.savez(tmp_path / "pytorch-fid.npz", mu=np.zeros(9), sigma=np.eye(9))
    bare = judge(tmp_path / "a.npz", tmp_path / "pytorch-fid.npz", tmp_path / "runs")
    assert bare.metrics["fd-toy"] == first.metrics["fd-toy"]
    assert not {"precision-toy", "kid-toy", "sfid-toy"} & bare.metrics.keys()


@pytest.mark.parametrize(
    ("names", "is_unknown"), [(("mu", "sigma"), True), (("mu", "sigma", "mu_s", "sigma_s"), False)]
)
def test_statistics_that_do_not_say_who_made_them_are_told(tmp_path, names, is_unknown):
    np.savez(tmp_path / "a.npz", noise(20, 0))
    shapes = {"mu": 9, "mu_s": 9, "sigma": (9, 9), "sigma_s": (9, 9)}
    arrays = {name: np.eye(9) if "sigma" in name else np.zeros(shapes[name]) for name in names}
    np.savez(tmp_path / "fid_stats.npz", **arrays)
    found = judge(tmp_path / "a.npz", tmp_path / "fid_stats.npz", tmp_path / "runs")
    assert warned(found, "the program that made it is unknown") is is_unknown
