"""probe: classes that pictures show are read from latents and from ids; which images are held out."""

import io
import zlib

import numpy as np
import pytest
import tiny
from PIL import Image
from remarks import Remarks

from titokctl.context import Context
from titokctl.errors import UsageError, UserError
from titokctl.jobs.evaluate.probe import Probe


def class_folder(root, per_class: int, names=("dark", "light", "middle"), first: int = 0):
    """Pictures whose class is their brightness."""
    for c, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            noise = np.random.default_rng(1000 * c + first + i).integers(0, 60, (40, 40, 3))
            out = io.BytesIO()
            brightness = {"dark": 0, "light": 180, "middle": 90}[name]
            Image.fromarray((noise + brightness).astype(np.uint8)).save(out, "PNG")
            (root / name / f"{first + i:04d}.png").write_bytes(out.getvalue())
    return root


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("probe")
    tiny.tokenizer(root / "tok.safetensors")
    return root / "tok.safetensors", class_folder(root / "train", 30), class_folder(root / "val", 7, first=30)


def go(weights, data, runs, **settings):
    return Probe([data], str(weights), **settings).run(Context(runs))


@pytest.mark.parametrize("input", ["latents", "ids"])
def test_classes_that_can_be_seen_are_read(made, tmp_path, input):
    weights, train, val = made
    found = go(weights, train, tmp_path, validation=[val], input=input)
    assert (found.classes, found.training_images, found.held_out_images) == (3, 90, 21)
    assert found.accuracy > 0.9
    assert found.training_accuracy >= 0.9
    assert found.chance == pytest.approx(1 / 3)
    assert found.standard_error == pytest.approx((found.accuracy * (1 - found.accuracy) / 21) ** 0.5)


def test_the_memory_that_it_takes_is_said_before(made, tmp_path):
    talk = Remarks()
    Probe([made[1]], str(made[0]), validation=[made[2]]).run(Context(tmp_path, progress=talk))
    assert f"111 images x {tiny.TOKENS * 4} numbers: up to 42.6 kB of memory" in talk.said


def test_a_gaussian_tokenizers_means_are_read_and_its_ids_refused(made, tmp_path):
    tiny.tokenizer(tmp_path / "g.safetensors", quantizer="gaussian", codebook_size=None)
    assert go(tmp_path / "g.safetensors", made[1], tmp_path, validation=[made[2]]).accuracy > 0.9
    with pytest.raises(UserError, match="does not produce ids"):
        go(tmp_path / "g.safetensors", made[1], tmp_path, input="ids")


def test_without_val_a_share_is_held_out_by_its_keys(made, tmp_path):
    found = go(made[0], made[1], tmp_path, val_fraction=0.3)
    names = [f"{name}/{i:04d}" for name in ("dark", "light", "middle") for i in range(30)]
    held_out = sum(zlib.crc32(key.encode()) / 2**32 < 0.3 for key in names)
    assert (found.training_images, found.held_out_images) == (90 - held_out, held_out)


def test_images_without_labels_and_bad_ones_are_counted(made, tmp_path):
    folder = class_folder(tmp_path / "more", 12)
    (folder / "dark" / "0003.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    with pytest.raises(UserError, match="1 image can't be read: dark/0003"):
        go(made[0], folder, tmp_path / "runs")
    found = go(made[0], folder, tmp_path / "runs", skip_bad=True)
    assert (found.skipped, found.training_images + found.held_out_images) == (1, 35)
    flat = tmp_path / "flat"
    flat.mkdir()
    for i in range(3):
        (flat / f"{i}.png").write_bytes((folder / "light" / f"{i:04d}.png").read_bytes())
    with pytest.raises(UserError, match="0 labelled images to fit a probe"):
        go(made[0], flat, tmp_path / "runs")


def test_classes_that_mean_different_things_are_refused(made, tmp_path):
    other = class_folder(tmp_path / "other", 2, names=("dark", "middle"))
    with pytest.raises(UserError, match="class 1 is light in the training images and middle in the held-out"):
        go(made[0], made[1], tmp_path, validation=[other])
    one = class_folder(tmp_path / "one", 5, names=("dark",))
    with pytest.raises(UserError, match="all images have the same class"):
        go(made[0], one, tmp_path, validation=[class_folder(tmp_path / "two", 2, names=("dark",))])


@pytest.mark.parametrize("settings", [{"input": "pixels"}, {"val_fraction": 1.0}, {"penalty": -1.0}])
def test_wrong_settings_are_refused(settings):
    with pytest.raises(UsageError):
        Probe(["x"], **settings)


@pytest.mark.slow
def test_the_command_in_two_processes_gives_the_result_of_one(made, tmp_path, run_cli):
    weights, train, val = made
    words = ("probe", train, "--val", val, "--tokenizer", weights, "--json")
    two = run_cli(*words, "--procs", 2, code=0)
    assert two.json == run_cli(*words, "--device", "cpu", code=0).json
    assert two.json["accuracy"] > 0.9


def test_choices_about_the_source_are_taken(made, run_cli, tmp_path):
    """A folder with both splits in it is read where --split says."""
    weights, _, _ = made
    for split in ("train", "val"):
        class_folder(tmp_path / "pictures" / split, 8, ("dark", "light"))
    words = ["--split", "train", "--tokenizer", weights, "--json", "--device", "cpu"]
    found = run_cli("probe", tmp_path / "pictures", *words, code=0).json
    assert found["training_images"] + found["held_out_images"] == 16
    assert found["classes"] == 2
