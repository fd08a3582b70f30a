"""The commands a person types, one after the other, on rendered scenes, with nothing named that can be found."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from titokctl.data.images import encode_png
from titokctl.data.scenes.factors import CLASS_NAMES, scene
from titokctl.data.scenes.renderer import render
from titokctl.formats.run_folder import finished_runs
from titokctl.formats.token_cache import TokenCache
from titokctl.weights.load import load_generator, load_tokenizer

PER_CLASS = 3
SAMPLES = 40
FEW_STEPS = (
    "--set=training.steps=12",
    "--set=training.evaluate_every=12",
    "--set=codebook.continuous_steps=5",
)


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory) -> Path:
    """imagenet/<class>/<index>.png: a few rendered scenes of each class."""
    folder = tmp_path_factory.mktemp("scenes") / "imagenet"
    for index in range(PER_CLASS * len(CLASS_NAMES)):
        found = scene(0, index)
        place = folder / found.class_name / f"{index:04d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(encode_png(render(found)))
    return folder


def test_shards_to_score(run_cli, runs, tmp_path, imagenet):
    run_cli("shard", imagenet, "-o", "shards", code=0)
    run_cli("train-tokenizer", "shards", "--recipe", "tiny", *FEW_STEPS, code=0)
    tokenizer = finished_runs(runs, "tokenizer")[0]

    made = run_cli("tokenize", imagenet, "-o", "tokens.h5", code=0)
    assert str(tokenizer.path) in made.stderr, "it says which tokenizer it took"
    check_cache(tmp_path / "tokens.h5", imagenet, tokenizer)

    trained = run_cli("train-gen", "tokens.h5", "--set", "training.steps=8", code=0)
    assert "recipe: generator/tiny" in trained.stderr
    generator = finished_runs(runs, "generator")[0]
    assert load_generator(generator.path).config.num_classes == len(CLASS_NAMES)

    drawn = run_cli("sample", "--cfg", "4.0", "-n", SAMPLES, code=0)
    assert str(generator.path) in drawn.stderr
    assert str(tokenizer.path) in drawn.stderr
    check_samples(finished_runs(runs, "samples")[0].path, tokenizer)

    scored = run_cli("fid", "--features", "lite0", "--json", code=0)
    assert str(finished_runs(runs, "samples")[0].path) in scored.stderr
    metrics = scored.json["metrics"]
    assert metrics["fd-lite0"] > 0
    assert not any(name == "fid" for name in metrics), "other features are never called FID"

    refused = run_cli("fid", code=1)
    assert "inception-2015-12-05-6726825d" in refused.stderr
    assert "hint:" in refused.stderr
    assert "Traceback" not in refused.stderr

    shown = run_cli("reconstruct", imagenet, "-o", "seen", "-n", "6", "--json", code=0).json
    assert shown["images"] == 6
    with Image.open(tmp_path / "seen" / "reconstructions.png") as picture:
        assert picture.size[0] > 64
    assert f"{PER_CLASS * len(CLASS_NAMES)}" in run_cli("inspect", "tokens.h5", code=0).stdout


def check_cache(path: Path, imagenet: Path, tokenizer) -> None:
    """Row i is image i, as the tokenizer sees it now; the file alone says all of it."""
    cache = TokenCache.open(path)
    assert len(cache) == PER_CLASS * len(CLASS_NAMES)
    assert cache.class_names == CLASS_NAMES
    assert cache.header.weights_sha256 == tokenizer.hashes["weights_sha256"]
    model = load_tokenizer(tokenizer.path)
    for row in (0, 40, len(cache) - 1):
        with Image.open(imagenet / f"{cache.key(row)}.png") as picture:
            pixels = np.asarray(picture.convert("RGB"))
        for view, image in (("plain", pixels), ("flip", pixels[:, ::-1])):
            ids = model.tokenize(as_floats(image))[0].numpy()
            assert (cache.view(view)[row] == ids).mean() > 0.9, "near ties may fall either way in another batch"
        assert cache.class_names[cache.labels[row]] == cache.key(row).split("/")[0]
    with h5py.File(path) as file:
        assert file.attrs["format"] == b"titokctl/token-cache"
        assert file.attrs["complete"]
        assert file["tokens"].dtype == np.uint16
        assert file["tokens"].chunks is None


def as_floats(image: np.ndarray) -> torch.Tensor:
    """(H, W, 3) uint8 to (1, 3, H, W) in [0, 1]."""
    return torch.tensor(image.copy()).permute(2, 0, 1)[None].float() / 255


def check_samples(folder: Path, tokenizer) -> None:
    """SAMPLES images, labels that cycle through the classes, and pixels that are the decoded ids."""
    images = np.load(folder / "images.npz", allow_pickle=False)["arr_0"]
    assert images.shape == (SAMPLES, 64, 64, 3)
    assert images.dtype == np.uint8
    ids = TokenCache.open(folder / "ids.h5")
    assert ids.labels.tolist() == [i % len(CLASS_NAMES) for i in range(SAMPLES)]
    decoded = load_tokenizer(tokenizer.path).detokenize(torch.from_numpy(ids.ids[:8].astype(np.int64)))
    again = (decoded * 255).round().permute(0, 2, 3, 1).numpy()
    assert np.abs(again - images[:8]).max() <= 1
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["guidance"]["s"], manifest["guidance"]["w"]) == (4.0, 5.0)
    with Image.open(folder / "grid.png") as picture:
        assert picture.size[0] > 64


def test_without_any_tokenizer_tokenize_says_how_to_get_one(run_cli, imagenet):
    refused = run_cli("tokenize", imagenet, "-o", "tokens.h5", code=1)
    text = " ".join(refused.stderr.split())
    assert "titok-l-32 is not on this machine" in text
    assert "titokctl train-tokenizer" in text
    assert "titokctl weights ls" in text


def test_commands_without_anything_before_them_say_what_comes_first(run_cli):
    assert "train-gen" in run_cli("sample", "--cfg", "4.0", "-n", "8", code=1).stderr
    assert "titokctl sample" in run_cli("fid", "--features", "lite0", code=1).stderr
