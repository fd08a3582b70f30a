"""`titokctl sample`: its products, that they can be repeated, and its refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import trained
from command_line import RunCli
from PIL import Image

from titokctl.cli.app import run
from titokctl.data.images import decode
from titokctl.data.sources import open_source
from titokctl.formats.run_folder import finished_runs
from titokctl.formats.sample_set import SampleSet
from titokctl.formats.token_cache import TokenCache
from titokctl.weights.load import load_tokenizer


@pytest.fixture
def sample(networks, capsys):
    """Call the command in this process and return the sample set; the tests share the runs folder."""

    def call(*words: object) -> SampleSet:
        code = run(["sample", "--runs-dir", str(networks), "--device", "cpu", "--json", *map(str, words)])
        out, err = capsys.readouterr()
        assert code == 0, err
        return SampleSet.open(json.loads(out)["samples"])

    return call


@pytest.fixture
def refused(networks, capsys):
    """Call the command, which must fail with `code`; returns its stderr."""

    def call(code: int, *words: object) -> str:
        assert run(["sample", "--runs-dir", str(networks), "--device", "cpu", *map(str, words)]) == code
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("error: ") == 1
        assert "Traceback" not in err
        return err

    return call


def images_of(found: SampleSet) -> np.ndarray:
    if found.images.name == "shards":
        source = open_source([found.images])
        return np.stack([decode(source.sample(i).data) for i in range(len(source))])
    if found.images.is_dir():
        return np.stack([pixels_of(path) for path in sorted(found.images.iterdir())])
    with np.load(found.images, allow_pickle=False) as arrays:
        return arrays["arr_0"]


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_what_it_makes(networks, run_cli: RunCli):
    words = ["--cfg", "4.0", "-n", 50, "--runs-dir", networks, "--device", "cpu", "--precision", "float32", "--json"]
    done = run_cli("sample", *words, code=0)
    assert "guidance s = 4 (w = 5 as DiT and diffusers count), linear" in done.stderr
    assert f"generator: {networks}/generator/gen" in done.stderr
    assert f"tokenizer: {networks}/tokenizer/tok" in done.stderr
    found = SampleSet.open(done.json["samples"])
    images = images_of(found)
    assert images.shape == (50, trained.SIZE, trained.SIZE, 3)
    assert images.dtype == np.uint8
    cache = TokenCache.open(found.ids)
    assert cache.labels.tolist() == [i % 3 for i in range(50)]
    assert cache.class_names == ["ant", "bee", "cat"]
    assert len(np.unique(cache.ids, axis=0)) == 50
    tokenizer = load_tokenizer(str(networks / "tokenizer" / "tok"))
    expected = tokenizer.detokenize(torch.from_numpy(cache.ids.astype(np.int64))).mul(255).round()
    assert np.array_equal(images, expected.permute(0, 2, 3, 1).numpy().astype(np.uint8))
    height, width, _ = pixels_of(found.folder / "grid.png").shape
    assert height > trained.CLASSES * trained.SIZE, "a row for each class"
    assert width > len(images) // trained.CLASSES * trained.SIZE + 20, "and its name"


def test_what_it_records(sample, networks):
    found = sample("--cfg", "6.9w", "-n", 3, "--steps", 3, "--seed", 9, "--cfg-interval", "0.2,0.9")
    manifest = found.manifest
    assert (manifest["guidance"]["s"], manifest["guidance"]["w"]) == (5.9, 6.9)
    assert manifest["guidance"]["interval"] == [0.2, 0.9]
    assert "c - u" in manifest["guidance"]["formula"]
    own = trained.OWN.model_dump(mode="json")
    assert manifest["settings"]["sampling"] == own | {
        "guidance_scale": 5.9, "guidance_interval": [0.2, 0.9], "num_steps": 3, "seed": 9,
    }  # fmt: skip
    assert manifest["settings"]["classes"] == "all"
    (newest, *_) = finished_runs(networks, "samples")
    assert newest.path == found.folder
    tokenizer = json.loads((networks / "tokenizer" / "tok" / "run.json").read_text())["hashes"]
    for name in ("encoder_sha256", "weights_sha256"):
        assert newest.inputs[name] == manifest["settings"][name] == tokenizer[name]
    assert newest.inputs["source"] == {"kind": "folder", "paths": ["/somewhere"]}
    assert newest.inputs["preprocessing"] == {"size": trained.SIZE}
    recorded = manifest["made_with"]["versions"]["torch"]
    assert recorded.split("+")[0] == torch.__version__.split("+")[0], "a package may leave out the build"


def test_the_settings_are_reported_at_the_start(networks, capsys):
    ramp = ["--cfg", "6.9w", "--cfg-schedule", "power-cosine", "--cfg-power", "2"]
    words = ["sample", "-n", "3", *ramp, "--no-softmax-annealing", "--runs-dir", str(networks), "--device", "cpu"]
    assert run(words) == 0
    said = capsys.readouterr().err
    assert "3 images, 3 of 3 classes, seed 0, 4 steps" in said
    assert "s = 5.9 (w = 6.9 as DiT and diffusers count), power-cosine of power 2" in said
    assert "choice temperature 3, softmax annealing off" in said


def test_ids_and_images_do_not_depend_on_batch_size_number_or_format(sample, tmp_path):
    whole = sample("-n", 50)
    ids, images = TokenCache.open(whole.ids).ids, images_of(whole)
    for number, words in enumerate(
        [("--batch-size", 3), ("--format", "png"), ("--format", "webp"), ("--format", "wds")]
    ):
        other = sample("-n", 50, "-o", tmp_path / str(number), *words)
        assert np.array_equal(TokenCache.open(other.ids).ids, ids)
        assert np.array_equal(images_of(other), images)
    fewer = sample("-n", 19)
    assert np.array_equal(TokenCache.open(fewer.ids).ids, ids[:19])
    assert np.array_equal(images_of(fewer), images[:19])


def test_classes_and_number_a_class(sample):
    found = sample("--classes", "2,0", "--per-class", 4)
    assert TokenCache.open(found.ids).labels.tolist() == [2, 0] * 4
    assert found.manifest["settings"]["classes"] == [2, 0]


def test_settings_change_the_ids(sample):
    def ids(*words: object) -> np.ndarray:
        return TokenCache.open(sample("-n", 16, *words).ids).ids

    plain = ids()
    for words in (
        ("--seed", 1), ("--cfg", 9), ("--steps", 2), ("--choice-temperature", 30), ("--no-softmax-annealing",),
        ("--cfg-schedule", "constant"),
    ):  # fmt: skip
        assert not np.array_equal(ids(*words), plain), words
    power = ids("--cfg-schedule", "power-cosine", "--cfg", 9, "--cfg-power", 0.5)
    assert not np.array_equal(ids("--cfg-schedule", "power-cosine", "--cfg", 9), power)


def test_a_finished_set_is_not_drawn_again_and_becomes_the_newest(sample, networks, capsys):
    first = sample("-n", 5, "--seed", 3)
    before = first.images.stat().st_mtime_ns
    assert run(["sample", "--runs-dir", str(networks), "--device", "cpu", "-n", "5", "--seed", "3"]) == 0
    assert "None" not in capsys.readouterr().out
    second = sample("-n", 5, "--seed", 4)
    assert second.folder != first.folder
    assert finished_runs(networks, "samples")[0].path == second.folder
    assert sample("-n", 5, "--seed", 3).folder == first.folder
    assert finished_runs(networks, "samples")[0].path == first.folder
    assert first.images.stat().st_mtime_ns == before


def test_an_output_folder_is_found_through_the_runs_folder(sample, networks, tmp_path):
    found = sample("-n", 5, "-o", tmp_path / "mine")
    assert found.folder == tmp_path / "mine"
    assert SampleSet.open(finished_runs(networks, "samples")[0].path).folder == tmp_path / "mine"


def test_an_existing_output(sample, refused, tmp_path):
    output = tmp_path / "mine"
    sample("-n", 5, "-o", output)
    assert f"{output} exists already, made with other settings" in refused(1, "-n", 6, "-o", output)
    found = sample("-n", 6, "-o", output, "--overwrite", "--format", "png")
    assert len(images_of(found)) == 6
    assert not (output / "images.npz").exists()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").touch()
    assert "is not a sample set" in refused(1, "-n", 5, "-o", tmp_path / "thesis", "--overwrite")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cfg", "abc"], "'abc' is not a number"),
        (["--cfg", "-1"], "below 0"),
        (["-n", "0"], "-n must be at least 1, not 0"),
        (["-n", "-3"], "-n must be at least 1"),
        (["--per-class", "0"], "--per-class must be at least 1"),
        (["-n", "3", "--per-class", "3"], "mutually exclusive"),
        (["--classes", "7"], "class 7 is out of range: this generator has the classes 0 to 2"),
        (["--classes", "a"], "no class named"),
        (["--steps", "0"], "--steps must be at least 1"),
        (["--choice-temperature", "-1"], "--choice-temperature must be at least 0"),
        (["--cfg-power", "nan"], "--cfg-power must be"),
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        (["-o", "samples.npz"], "a sample set is a folder"),
        (["--format", "gif"], "gif"),
        (["--precision", "fp8"], "fp8"),
        (["-n", "1e3"], "invalid value for '-n' / '--num-images': a whole number is expected"),
        (["--features", "lite0"], "belong to --fid"),
        (["--procs", "0"], "must be at least 1"),
        (["--procs", "2", "--gpus", "2"], "mutually exclusive"),
        (["--cfg-schedule", "cubic"], "cubic"),
        (["--cfg-interval", "0.8,0.2"], "--cfg-interval '0.8,0.2' is not two rising fractions"),
        (["--cfg-interval", "0.2,1.5"], "not two rising fractions"),
        (["--cfg-interval", "-0.1,0.5"], "not two rising fractions"),
        (["--cfg-interval", "0.5,0.5"], "not two rising fractions"),
        (["--cfg-interval", "0.5"], "not two rising fractions"),
        (["--cfg-interval", "nan,1"], "not two rising fractions"),
    ],
)
def test_wrong_options(refused, networks, words, message):
    before = sorted(networks.rglob("*"))
    assert message in refused(2, *words)
    assert sorted(networks.rglob("*")) == before


def test_networks_that_are_missing_or_do_not_fit(refused, tmp_path, networks):
    assert "a tokenizer, but a generator is expected" in refused(1, "--generator", networks / "tokenizer" / "tok")
    assert "a generator, but a tokenizer is expected" in refused(1, "--tokenizer", networks / "generator" / "gen")
    assert "hint: " in refused(1, "--generator", "nobody-s-generator")
    empty = refused(1, "--runs-dir", tmp_path)
    assert "no generator was named" in empty
    assert "titokctl train-gen" in empty
    others = tmp_path / "others"
    trained.tokenizer_run(others, "another", seed=5)
    trained.tokenizer_run(others, "longer", num_latent_tokens=16)
    trained.tokenizer_run(others, "larger", codebook_size=64)
    said = refused(1, "--tokenizer", others / "tokenizer" / "another")
    assert "was made by another tokenizer than" in said
    assert "hint: leave out --tokenizer" in said
    assert "tokens an image: 8 and 16" in refused(1, "--tokenizer", others / "tokenizer" / "longer")
    assert "codes: 32 and 64" in refused(1, "--tokenizer", others / "tokenizer" / "larger")
    orphan = tmp_path / "orphan"
    trained.generator_run(orphan, {"encoder_sha256": "0" * 64, "weights_sha256": "0" * 64})
    assert "is not in" in refused(1, "--runs-dir", orphan)


def test_a_generator_without_classes(tmp_path, capsys):
    runs = tmp_path / "runs"
    trained.generator_run(runs, trained.tokenizer_run(runs), num_classes=0)
    assert run(["sample", "--runs-dir", str(runs), "--device", "cpu", "-n", "4", "--json"]) == 0
    found = SampleSet.open(json.loads(capsys.readouterr().out)["samples"])
    assert TokenCache.open(found.ids).labels.tolist() == [-1] * 4
    for words in (["--classes", "0"], ["--per-class", "2"]):
        assert run(["sample", "--runs-dir", str(runs), *words]) == 2
        assert "without classes" in capsys.readouterr().err


def test_more_steps_than_tokens_warns(networks, capsys):
    assert run(["sample", "--runs-dir", str(networks), "--device", "cpu", "-n", "2", "--steps", "20"]) == 0
    assert "warning: 20 steps for 8 tokens" in capsys.readouterr().err


def test_a_published_number_in_the_other_form_gets_a_hint(networks, capsys):
    assert run(["sample", "--runs-dir", str(networks), "--device", "cpu", "-n", "2", "--cfg", "6.9"]) == 0
    assert "--cfg 6.9w" in capsys.readouterr().err
