"""reconstruct: the picture and the numbers are those of the tokenizer."""

import json

import numpy as np
import pytest
import tiny
import torch
import toy_features
from PIL import Image

from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.context import Context
from titokctl.data.images import preprocess, to_bytes, to_float
from titokctl.data.order import spread_positions
from titokctl.errors import UsageError, UserError
from titokctl.evaluation.extractors import open_extractor
from titokctl.evaluation.features import extract_all
from titokctl.evaluation.frechet import frechet_distance, gaussian_of
from titokctl.evaluation.metrics import kernel_distance
from titokctl.jobs.evaluate.reconstruct import Reconstruct, picture
from titokctl.models.lpips import Lpips
from titokctl.weights.perceptual import lpips_from


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    return tiny.tokenizer(root / "tok.safetensors"), root / "tok.safetensors", tiny.class_folder(root / "photos", 10)


def go(made, output, **settings):
    _, weights, folder = made
    settings = {"features": "none"} | settings
    job = Reconstruct([settings.pop("data", folder)], str(weights), output, **settings)
    return job.run(Context(output.parent / "runs"))


def expected(made):
    model, _, folder = made
    files = sorted(folder.rglob("*.jpg"))
    originals = np.stack([preprocess(f.read_bytes(), PreprocessingConfig(size=tiny.SIZE)) for f in files])
    ids = model.tokenize(to_float(torch.from_numpy(originals)))
    return originals, ids.numpy(), to_bytes(model.detokenize(ids)).numpy()


def test_numbers_are_those_of_all_images(made, tmp_path):
    originals, ids, reconstructions = expected(made)
    found = go(made, tmp_path / "out")
    error = ((originals.astype(float) - reconstructions) ** 2).mean()
    assert found.images == 20
    assert found.psnr_pooled == pytest.approx(10 * np.log10(255**2 / error), abs=0.01)
    assert found.codes_used == len(np.unique(ids))
    assert found.codebook_size == tiny.CODES
    kept = json.loads((tmp_path / "out" / "reconstruction.json").read_text())
    assert kept["psnr_pooled"] == found.psnr_pooled
    assert kept["about"]["source"]["num_samples"] == 20


def test_distances_are_those_between_the_two_sets(made, tmp_path):
    originals, _, reconstructions = expected(made)
    found = go(made, tmp_path / "out", features="lite0")
    x, y = (extract_all(open_extractor("lite0"), [images])["pool"] for images in (originals, reconstructions))
    # A pixel in a thousand is rounded otherwise by another batch.
    assert found.distances["fd-lite0"] == pytest.approx(frechet_distance(gaussian_of(y), gaussian_of(x)), rel=1e-3)
    assert found.distances["kid-lite0_all_pairs"] == pytest.approx(kernel_distance(y, x), rel=1e-3)
    assert not any("rfid" in name for name in found.distances)
    assert found.about["features"]["name"] == "lite0"
    assert go(made, tmp_path / "without").distances == {}


def test_lpips_where_its_weights_are_here(made, tmp_path, monkeypatch):
    torch.manual_seed(0)
    network = Lpips()
    vgg16 = {name: value for name, value in network.state_dict().items() if name.startswith("features")}
    linear = {f"lin{i}.model.1.weight": torch.rand(1, w, 1, 1) for i, w in enumerate((64, 128, 256, 512, 512))}
    for variable, tensors in (("TITOKCTL_VGG16", vgg16), ("TITOKCTL_LPIPS", linear)):
        torch.save(tensors, tmp_path / f"{variable}.pth")
        monkeypatch.setenv(variable, str(tmp_path / f"{variable}.pth"))
    originals, _, reconstructions = expected(made)
    found = go(made, tmp_path / "out")
    a, b = (to_float(torch.from_numpy(x)) for x in (originals, reconstructions))
    with torch.inference_mode():
        assert found.lpips == pytest.approx(float(lpips_from(vgg16, linear)(a, b).mean()), rel=1e-3)
    assert go(made, tmp_path / "without", lpips=False).lpips is None


def test_what_is_not_here_is_said_and_refused_when_asked_for(made, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("lpips", "features"):
        with pytest.raises(UserError, match="is not on this machine"):
            go(made, tmp_path / "out", **{name: {"lpips": True, "features": "inception"}[name]})
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="at least 2 images"):
        go(made, tmp_path / "out", num_images=1, features="lite0")
    assert go(made, tmp_path / "out", num_images=1).images == 1


def test_the_picture_shows_originals_over_reconstructions(made, tmp_path):
    originals, _, reconstructions = expected(made)
    go(made, tmp_path / "out")
    with Image.open(tmp_path / "out" / "reconstructions.png") as image:
        shown = np.asarray(image)
    size = tiny.SIZE
    assert np.array_equal(shown[2 : 2 + size, 2 : 2 + size], originals[0])
    below = shown[4 + size : 4 + 2 * size, 2 : 2 + size].astype(int)
    assert np.abs(below - reconstructions[0]).max() <= 1
    assert np.array_equal(shown[2 : 2 + size, 4 + size : 4 + 2 * size], originals[1])


def test_a_part_is_spread_over_the_source(made, tmp_path):
    originals, _, _ = expected(made)
    found = go(made, tmp_path / "out", num_images=4)
    assert found.images == 4
    with Image.open(tmp_path / "out" / "reconstructions.png") as image:
        shown = np.asarray(image)
    size = tiny.SIZE
    second = spread_positions(len(originals), 4)[1]
    assert np.array_equal(shown[2 : 2 + size, 4 + size : 4 + 2 * size], originals[second])


def test_pairs_fill_rows_and_the_last_one_is_padded_with_white():
    pairs = [(np.full((4, 4, 3), i, np.uint8), np.full((4, 4, 3), 100 + i, np.uint8)) for i in range(3)]
    shown = picture(pairs, columns=2)
    assert shown.shape == (2 * 14, 14, 3)
    assert [shown[3, 3, 0], shown[9, 3, 0], shown[3, 9, 0], shown[17, 3, 0]] == [0, 100, 1, 2]
    assert shown[17, 9, 0] == 255


def test_existing_results_and_wrong_numbers_are_refused(made, tmp_path):
    go(made, tmp_path / "out", num_images=2)
    with pytest.raises(UserError, match="made with other settings"):
        go(made, tmp_path / "out")
    go(made, tmp_path / "out", num_images=3, overwrite=True)
    with pytest.raises(UsageError, match="at least 1"):
        go(made, tmp_path / "other", num_images=0)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot make the folder"):
        go(made, tmp_path / "file" / "out", num_images=2)


def test_a_corrupt_image_is_named(made, tmp_path):
    folder = tiny.class_folder(tmp_path / "photos", 3)
    (folder / "dog" / "0001.jpg").write_bytes(b"\xff\xd8\xff nothing")
    with pytest.raises(UserError, match="1 image can't be read: dog/0001"):
        go(made, tmp_path / "out", data=folder)
    assert not list((tmp_path / "out").iterdir())
    assert go(made, tmp_path / "out", data=folder, skip_bad=True).skipped == 1


def test_a_sample_set_is_its_images_and_not_their_grid(made, tmp_path):
    """An .npz holds none that can be read here; a folder of files is taken without grid.png beside it."""
    for name, images in (("as_npz", "images.npz"), ("as_files", "images")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ids.h5").touch()
        Image.new("RGB", (32, 32)).save(tmp_path / name / "grid.png")
        manifest = {"format": "titokctl/sample-set", "format_version": 1, "images": images}
        (tmp_path / name / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"sample set whose images are in images\.npz"):
        go(made, tmp_path / "out", data=tmp_path / "as_npz")
    tiny.class_folder(tmp_path / "as_files" / "images", 2)
    assert go(made, tmp_path / "out", data=tmp_path / "as_files").images == 4


@pytest.mark.parametrize("procs", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_several_processes_give_the_numbers_and_the_picture_of_one(run_cli, tmp_path, monkeypatch, procs):
    """With a classifier's score of the reconstructions, an image that can't be read, and a share for each process."""
    toy = toy_features.install(tmp_path / "package")
    monkeypatch.syspath_prepend(tmp_path / "package")
    tiny.tokenizer(tmp_path / "tok.safetensors")
    folder = tiny.class_folder(tmp_path / "photos", 25)
    (folder / "dog" / "0020.jpg").write_bytes(b"\xff\xd8\xff nothing")
    words = ("reconstruct", folder, "--tokenizer", tmp_path / "tok.safetensors", "--features", "toy", "--skip-bad")
    many = run_cli(*words, "-o", "many", "--procs", procs, "--json", env=toy, code=0)
    one = run_cli(*words, "-o", "one", "--json", "--device", "cpu", env=toy, code=0)
    assert one.json["images"] == 49
    assert one.json["inception_score"].keys() == {"is-toy", "is-toy_deviation"}
    sums = {"psnr_pooled", "psnr_mean", "psnr_mean_colour", "psnr_pca", "psnr_gaussian", "ssim", "codebook_perplexity"}
    different = sums | {"output", "distances", "inception_score"}
    assert {k: v for k, v in many.json.items() if k not in different} == {
        k: v for k, v in one.json.items() if k not in different
    }
    for name in different - {"output"}:
        assert many.json[name] == pytest.approx(one.json[name], rel=1e-6), name
    assert many.stderr.count("1 image can't be read") == 1
    pictures = [(tmp_path / name / "reconstructions.png").read_bytes() for name in ("many", "one")]
    assert pictures[0] == pictures[1]


def test_the_command(run_cli, made, tmp_path):
    done = run_cli("reconstruct", made[2], "--tokenizer", made[1], "-o", "out", "--json", "-n", 2, code=0)
    assert done.json["images"] == 2
    assert (tmp_path / "out" / "reconstructions.png").is_file()
