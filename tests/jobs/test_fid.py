"""fid and stats: what they compare, what they keep, and what they refuse."""

import json
import os
import shutil

import numpy as np
import pytest
import tiny
import toy_features
import trained
from PIL import Image
from remarks import Remarks

from titokctl.cli.app import run
from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.context import Context
from titokctl.data.sources import open_source
from titokctl.distributed.stop import StopRequest
from titokctl.errors import UsageError, UserError
from titokctl.evaluation.extractors import FeatureNetwork, open_extractor
from titokctl.evaluation.features import extract_all
from titokctl.evaluation.frechet import frechet_distance, gaussian_of
from titokctl.evaluation.metrics import kernel_distance
from titokctl.formats.sample_set import SampleSet
from titokctl.formats.statistics import read_statistics
from titokctl.jobs.evaluate.compare import Compare
from titokctl.jobs.evaluate.fid import Fid
from titokctl.jobs.evaluate.stats import Stats
from titokctl.jobs.tokenize.request import Tokenize

LITE0, TOY = FeatureNetwork("lite0"), FeatureNetwork("toy")


def noise(n: int, seed: int, size: int = 24) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)
    return coarse.repeat(size // 4, 1).repeat(size // 4, 2)


def png_folder(path, images: np.ndarray):
    path.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(path / f"{i:03d}.png")
    return path


def judge(samples, reference, tmp_path, remarks=None, **settings):
    settings = {"network": TOY, "metrics": ["kid"]} | settings
    return Fid(samples, reference, **settings).run(Context(tmp_path / "runs", progress=remarks or Remarks()))


def make_stats(data, output, tmp_path, **settings):
    return Stats([data], output, TOY, **settings).run(Context(tmp_path / "runs"))


@pytest.fixture(scope="module", autouse=True)
def toy(tmp_path_factory):
    """Install the toy network for this process; returns the environment for others."""
    package = tmp_path_factory.mktemp("toy") / "package"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(package)
        yield toy_features.install(package)


def test_numbers_are_those_of_the_images_features(tmp_path):
    extractor = open_extractor("lite0")
    a, b = noise(12, 0), noise(10, 1)
    np.savez(tmp_path / "a.npz", a)
    remarks = Remarks()
    found = judge(
        tmp_path / "a.npz", png_folder(tmp_path / "b", b), tmp_path, remarks, network=LITE0, metrics=["fid", "kid"]
    )
    x, y = extract_all(extractor, [a])["pool"], extract_all(extractor, [b])["pool"]
    assert found.metrics["fd-lite0"] == pytest.approx(frechet_distance(gaussian_of(x), gaussian_of(y)), rel=1e-5)
    assert found.metrics["kid-lite0_all_pairs"] == pytest.approx(kernel_distance(x, y), rel=1e-5)
    assert not any(name.startswith("fid") for name in found.metrics)
    assert (found.samples["count"], found.reference["count"]) == (12, 10)
    assert "fewer than the 1,280 features" in remarks
    kept = json.loads((tmp_path / "a.evaluation-lite0.json").read_text())
    assert kept["metrics"] == found.metrics
    assert kept["extractor"]["resize"]
    assert len(kept["reference"]["sha256"]) == 64


def test_statistics_of_a_reference_are_computed_once(tmp_path):
    np.savez(tmp_path / "a.npz", noise(8, 0))
    folder = png_folder(tmp_path / "b", noise(8, 1))
    first, second = Remarks(), Remarks()
    a = judge(tmp_path / "a.npz", folder, tmp_path, first)
    b = judge(tmp_path / "a.npz", folder, tmp_path, second)
    assert a.metrics == b.metrics
    assert "start features of the reference" in first
    assert "start features of the reference" not in second
    assert "runs/statistics/" in second
    Image.fromarray(noise(1, 9)[0]).save(folder / "999.png")
    third = Remarks()
    assert judge(tmp_path / "a.npz", folder, tmp_path, third).metrics != a.metrics
    assert "start features of the reference" in third


def test_a_set_against_itself_is_at_distance_zero(tmp_path):
    np.savez(tmp_path / "a.npz", noise(8, 0))
    found = judge(tmp_path / "a.npz", tmp_path / "a.npz", tmp_path, metrics=["fid"])
    assert found.metrics["fd-toy"] == pytest.approx(0, abs=1e-6)


def test_arrays_of_other_programs_are_judged_as_ours(tmp_path):
    images, reference = noise(8, 0), tmp_path / "b.npz"
    np.savez(reference, images=noise(8, 1), labels=np.arange(8))
    np.savez(tmp_path / "ours.npz", images)
    np.savez(tmp_path / "named.npz", samples=images, labels=np.zeros((8, 3)))
    np.save(tmp_path / "plain.npy", images)
    np.save(tmp_path / "floats.npy", (images / 255).astype(np.float32))
    metrics = [
        judge(tmp_path / name, reference, tmp_path).metrics
        for name in ("ours.npz", "named.npz", "plain.npy", "floats.npy")
    ]
    assert metrics[1:] == metrics[:1] * 3


def test_statistics_on_both_sides_give_what_their_images_give(tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        np.savez(tmp_path / f"{name}.npz", noise(8, seed))
        make_stats(tmp_path / f"{name}.npz", tmp_path / f"{name}-stats.npz", tmp_path)
    of_images = judge(tmp_path / "a.npz", tmp_path / "b.npz", tmp_path, metrics=["fid", "kid"])
    remarks = Remarks()
    sides = tmp_path / "a-stats.npz", tmp_path / "b-stats.npz"
    found = judge(*sides, tmp_path, remarks, metrics=["fid", "kid"])
    for name in ("fd-toy", "kid-toy_all_pairs"):
        assert found.metrics[name] == pytest.approx(of_images.metrics[name], rel=1e-9)
    assert (found.samples["kind"], found.samples["count"]) == ("statistics", 8)
    assert "start features" not in remarks
    assert (tmp_path / "a-stats.evaluation-toy.json").is_file()
    with np.load(sides[0]) as mine:
        np.savez(tmp_path / "foreign.npz", mu=mine["mu"], sigma=mine["sigma"])
    remarks = Remarks()
    foreign = judge(tmp_path / "foreign.npz", sides[1], tmp_path, remarks, metrics=["fid"])
    assert foreign.metrics["fd-toy"] == pytest.approx(of_images.metrics["fd-toy"], rel=1e-9)
    assert "foreign.npz contains only mu and sigma, so the program that made it is unknown" in remarks
    assert "0 images" not in remarks
    with pytest.raises(UserError, match=r"no array of images in .*: it contains mu, sigma"):
        make_stats(sides[0], tmp_path / "new.npz", tmp_path)


def test_a_statistics_file_gives_what_its_images_give(tmp_path):
    np.savez(tmp_path / "a.npz", noise(9, 0))
    folder = png_folder(tmp_path / "b", noise(8, 1))
    made = make_stats(folder, tmp_path / "ref.npz", tmp_path)
    assert made.images == 8
    direct = judge(tmp_path / "a.npz", folder, tmp_path, metrics=["fid", "kid"])
    through = judge(tmp_path / "a.npz", tmp_path / "ref.npz", tmp_path, metrics=["fid", "kid"])
    assert through.metrics == pytest.approx(direct.metrics, rel=1e-6)
    assert through.reference["sha256"] == made.sha256
    assert make_stats(folder, tmp_path / "ref.npz", tmp_path) == made
    with pytest.raises(UserError, match="cannot make the folder"):
        make_stats(folder, tmp_path / "a.npz" / "ref.npz", tmp_path)


def test_stats_brings_images_to_a_size(tmp_path):
    folder = tiny.class_folder(tmp_path / "photos", per_class=4)
    with pytest.raises(UserError, match="different sizes"):
        make_stats(folder, tmp_path / "ref.npz", tmp_path)
    assert not (tmp_path / "ref.npz").exists()
    make_stats(folder, tmp_path / "ref.npz", tmp_path, preprocessing=PreprocessingConfig(size=24))
    found = read_statistics(tmp_path / "ref.npz")
    assert (found.count, found.about["image_size"], found.features.shape) == (8, 24, (8, 9))
    assert found.about["source"]["preprocessing"]["size"] == 24
    np.savez(tmp_path / "a.npz", noise(5, 0, size=32))
    remarks = Remarks()
    judge(tmp_path / "a.npz", tmp_path / "ref.npz", tmp_path, remarks)
    assert "samples are of 32 px, the reference of 24 px" in remarks


def test_a_token_cache_is_decoded_and_compared_with_its_own_source(tmp_path):
    model = tiny.tokenizer(tmp_path / "tok.safetensors")
    folder = tiny.class_folder(tmp_path / "photos", per_class=5)
    (folder / "cat" / "bad.jpg").write_bytes(b"no image")
    given = {"tokenizer": str(tmp_path / "tok.safetensors")}
    with StopRequest() as stop:
        cache = tmp_path / "tokens.h5"
        Tokenize([folder], cache, given["tokenizer"], max_rejected=0.5).run(Context(tmp_path / "runs", stop=stop))
    remarks = Remarks()
    found = judge(cache, None, tmp_path, remarks, **given)
    assert found.samples["kind"] == "reconstructions"
    assert found.reference["preprocessing"]["size"] == model.config.image_size
    assert (found.samples["count"], found.reference["count"]) == (10, 10)
    assert "that the samples' token cache was made from" in remarks
    assert "warning: 1 of 11 images" in remarks
    assert "the token cache was made without them, too" in remarks
    again = Remarks()
    assert judge(cache, None, tmp_path, again, **given).metrics == found.metrics
    assert "start features of the reference" not in again
    other = folder / "cat" / "0000.jpg"
    state = other.stat()
    other.write_bytes(bytes(state.st_size))
    os.utime(other, ns=(state.st_atime_ns, state.st_mtime_ns))
    with pytest.raises(UserError, match=r"not those that were tokenized: .*the contents differ"):
        judge(cache, None, tmp_path, **given)
    other.unlink()
    with pytest.raises(UserError, match="not those that were tokenized"):
        judge(cache, None, tmp_path, **given)


def test_photos_of_mixed_sizes_are_judged_at_a_named_size_only(tmp_path):
    photos, others = (tiny.class_folder(tmp_path / name, per_class=3) for name in ("photos", "others"))
    np.savez(tmp_path / "a.npz", noise(5, 0))
    with pytest.raises(UserError, match="photos holds images of different sizes") as refused:
        judge(photos, tmp_path / "a.npz", tmp_path)
    assert "--size" in refused.value.hint
    at_24 = {"preprocessing": PreprocessingConfig(size=24)}
    with pytest.raises(UsageError, match=r"a\.npz is judged at its own size"):
        judge(tmp_path / "a.npz", photos, tmp_path, **at_24)
    found = judge(photos, others, tmp_path, metrics=["fid", "kid"], **at_24)
    assert found.samples["preprocessing"] == found.reference["preprocessing"]
    assert (found.samples["image_size"], found.samples["count"]) == (24, 6)
    # Other commands look at the same pixels again.
    judge(others, others, tmp_path, metrics=["fid", "kid"], **at_24)
    seen = Compare([str(photos), str(others)], others, TOY).run(Context(tmp_path / "runs"))
    assert "images, at least" in seen.remarks[0]
    assert len(seen.remarks) == 1


def test_floats_in_0_to_1_are_rounded_and_others_refused(tmp_path):
    images = noise(6, 0)
    np.savez(tmp_path / "bytes.npz", images)
    np.savez(tmp_path / "floats.npz", images.astype(np.float32) / 255)
    np.savez(tmp_path / "wide.npz", images.astype(np.float32))
    np.savez(tmp_path / "signed.npz", images.astype(np.int16))
    reference = png_folder(tmp_path / "b", noise(8, 1))
    as_bytes, as_floats = (judge(tmp_path / f"{n}.npz", reference, tmp_path) for n in ("bytes", "floats"))
    assert as_bytes.metrics == as_floats.metrics
    assert "rounded" in as_floats.samples["rounding"]
    with pytest.raises(UserError, match="holds floats from 0 to 255"):
        judge(tmp_path / "wide.npz", reference, tmp_path)
    np.savez(tmp_path / "broken.npz", np.full((3, 24, 24, 3), np.nan, np.float32))
    with pytest.raises(UserError, match=r"holds NaN; expected"):
        judge(tmp_path / "broken.npz", reference, tmp_path)
    with pytest.raises(UserError, match="int16; expected"):
        judge(tmp_path / "signed.npz", reference, tmp_path)


def test_a_corrupt_file_is_named_and_refused_unless_skipped(tmp_path):
    np.savez(tmp_path / "ref.npz", noise(8, 1))
    folder = png_folder(tmp_path / "a", noise(6, 0))
    whole = (folder / "003.png").read_bytes()
    (folder / "003.png").write_bytes(whole[: len(whole) // 2])
    remarks = Remarks()
    with pytest.raises(UserError, match=r"1 of 6 images .* can't be read: 003"):
        judge(folder, tmp_path / "ref.npz", tmp_path, remarks)
    assert "start features" not in remarks  # nothing was measured before
    assert not (folder / "evaluation-toy.json").exists()
    remarks = Remarks()
    found = judge(folder, tmp_path / "ref.npz", tmp_path, remarks, skip_bad=True)
    assert (found.samples["count"], found.samples["skipped"]) == (5, 1)
    assert "warning: 1 of 6 images" in remarks
    assert (folder / "evaluation-toy.json").is_file()


def test_what_cannot_be_compared_is_refused(tmp_path):
    reference = png_folder(tmp_path / "b", noise(4, 1))
    np.savez(tmp_path / "stats_only.npz", mu=np.zeros(9), sigma=np.eye(9))
    np.savez(tmp_path / "no_sigma.npz", mu=np.zeros(9))
    np.savez(tmp_path / "wide.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    np.savez(tmp_path / "one.npz", noise(1, 0))
    np.savez(tmp_path / "flat.npz", np.zeros((3, 0, 0, 3), np.uint8))
    np.savez(tmp_path / "a.npz", noise(5, 0))
    np.savez(tmp_path / "words.npz", words=np.array(["a"]), few=np.zeros((3, 3)))
    np.savez(tmp_path / "two.npz", a=noise(2, 0), b=noise(2, 1))
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    np.save(tmp_path / "cut.npy", noise(3, 0))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-5])
    (tmp_path / "text.npy").write_text("an array")
    (tmp_path / "begun" / ".unfinished").mkdir(parents=True)
    (tmp_path / "begun" / ".unfinished" / "settings.json").write_text("{}")
    refused = [
        ("flat.npz", reference, r"expected \(n, height, width, 3\) uint8", UserError),
        ("begun", reference, "is not a finished sample set", UserError),
        ("stats_only.npz", reference, "kid can't be computed: the samples have no features image by image", UserError),
        ("wide.npz", reference, "2048 features", UserError),
        ("words.npz", reference, "no array of images in .*: it contains words, few", UserError),
        ("two.npz", reference, "holds several arrays of images: a, b", UserError),
        ("objects.npy", reference, "pickled objects are never read", UserError),
        ("cut.npy", reference, r"cut\.npy (declares|is shorter)", UserError),
        ("text.npy", reference, "is not a numpy array", UserError),
        ("a.npz", tmp_path / "no_sigma.npz", "but no sigma", UserError),
        ("a.npz", tmp_path / "wide.npz", "2048 features", UserError),
        ("one.npz", reference, "need at least 2", UserError),
        ("a.npz", tmp_path / "nowhere", "no such file", UserError),
        ("nowhere.npz", reference, "no such file", UserError),
        ("a.npz", None, "does not say what it should be compared with", UsageError),
        ("a.npz", tmp_path / "stats_only.npz", "kid can't be computed: the reference holds neither", UserError),
    ]
    for samples, ref, message, kind in refused:
        with pytest.raises(kind, match=message):
            judge(tmp_path / samples, ref, tmp_path)


def test_metrics_by_name(tmp_path):
    np.savez(tmp_path / "a.npz", noise(6, 0))
    np.savez(tmp_path / "gaussian.npz", mu=np.zeros(1280), sigma=np.eye(1280))
    with pytest.raises(UsageError, match="unknown metric 'fids'"):
        judge(tmp_path / "a.npz", tmp_path / "a.npz", tmp_path, network=LITE0, metrics=["fids"])
    with pytest.raises(UsageError, match="needs Inception"):
        judge(tmp_path / "a.npz", tmp_path / "a.npz", tmp_path, network=LITE0, metrics=["is"])
    remarks = Remarks()
    found = judge(tmp_path / "a.npz", tmp_path / "gaussian.npz", tmp_path, remarks, network=LITE0, metrics=None)
    assert list(found.metrics) == ["fd-lite0"]
    assert "no kid: the reference holds neither images nor features" in remarks
    everything = judge(tmp_path / "a.npz", tmp_path / "a.npz", tmp_path, network=LITE0, metrics=None).metrics
    assert (everything["precision-lite0"], everything["recall-lite0"]) == (1, 1)


def test_without_inception_weights_it_says_how_to_get_them(run_cli, tmp_path):
    np.savez(tmp_path / "a.npz", noise(4, 0))
    found = run_cli("fid", "a.npz", "--ref", "a.npz", env={"TORCH_HOME": str(tmp_path / "torch")}, code=1)
    assert "weights-inception-2015-12-05-6726825d.pth" in found.stderr
    assert "TITOKCTL_INCEPTION" in found.stderr
    assert not found.stdout


def test_the_command_prints_json(run_cli, tmp_path):
    np.savez(tmp_path / "a.npz", noise(6, 0))
    shutil.copy(tmp_path / "a.npz", tmp_path / "b.npz")
    found = run_cli("fid", "a.npz", "--ref", "b.npz", "--features", "lite0", "--json", "--quiet", code=0)
    assert found.json["metrics"]["fd-lite0"] == pytest.approx(0, abs=1e-6)
    assert found.json["extractor"]["name"] == "lite0"
    assert all(line.startswith("warning: ") for line in found.stderr.splitlines())


def test_the_number_of_splits_of_the_inception_score_is_set_and_printed(run_cli, toy, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (30, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images)
    words = ("fid", "a.npz", "--ref", "a.npz", "--features", "toy", "--metrics", "is", "--save-features")
    logits = 8.0 * images[:, 3, 3] / 255  # as the toy network has them
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)

    def expected(splits: int) -> float:
        parts = np.split(p, splits)
        return float(np.mean([np.exp((q * np.log(q / q.mean(0))).sum(1).mean()) for q in parts]))

    three = run_cli(*words, "--is-splits", 3, "--json", env=toy, code=0)
    assert three.json["metrics"]["is-toy"] == pytest.approx(expected(3), rel=1e-5)
    assert (three.json["samples"]["is_splits"], three.json["samples"]["is_split_size"]) == (3, 10)
    one = run_cli(*words, env=toy, code=0)
    assert "other splits of the Inception score" in one.stderr  # the kept features are not mistaken for these
    assert "mean of 1 split of up to 30 images" in " ".join(one.stdout.split())
    assert "pixels as they are" in one.stdout
    photos = tiny.class_folder(tmp_path / "photos", per_class=3)
    resized = run_cli("fid", photos, "--ref", photos, "--size", 16, "--features", "toy", env=toy, code=0).stdout
    assert "(6 images, pixels resized to 16 px)" in " ".join(resized.split())
    kept = json.loads((tmp_path / "a.evaluation-toy.json").read_text())
    assert kept["metrics"]["is-toy"] == pytest.approx(expected(1), rel=1e-5)
    assert kept["earlier"][0]["metrics"]["is-toy"] == pytest.approx(expected(3), rel=1e-5)
    assert kept["earlier"][0]["samples"]["is_splits"] == 3
    assert "more than 30 images" in run_cli(*words, "--is-splits", 31, env=toy, code=2).stderr
    with pytest.raises(UsageError, match="needs a classifier: lite0 has none"):
        judge(tmp_path / "a.npz", tmp_path / "a.npz", tmp_path, network=LITE0, splits=3)


@pytest.fixture
def sampled(tmp_path, capsys):
    """A runs folder with a sample set whose generator learnt from tmp_path/photos, and how to call the command."""
    folder = tiny.class_folder(tmp_path / "photos", per_class=6)
    source = open_source([folder]).description
    trained.generator_run(tmp_path / "runs", trained.tokenizer_run(tmp_path / "runs"), source=source)

    def call(code: int, *words: object) -> tuple[dict, str]:
        assert run([*map(str, words), "--runs-dir", str(tmp_path / "runs"), "--json", "--device", "cpu"]) == code
        out, err = capsys.readouterr()
        return json.loads(out) if out else {}, err

    call(0, "sample", "-n", 10)
    return call


def test_nothing_named_takes_the_newest_samples_and_what_they_learnt_from(sampled, tmp_path):
    found, said = sampled(0, "fid", "--features", "toy")
    assert "samples: " in said
    assert "(the 12 images that the samples' token cache was made from)" in said
    assert (found["samples"]["count"], found["reference"]["count"]) == (10, 12)
    assert found["reference"]["preprocessing"]["size"] == trained.SIZE
    folder = next((tmp_path / "runs" / "samples").iterdir())
    assert json.loads((folder / "evaluation-toy.json").read_text())["metrics"] == found["metrics"]
    assert [p.suffix for p in (tmp_path / "runs" / "statistics").iterdir()] == [".npz"]
    assert "equally frequent" not in said
    assert SampleSet.open(folder).manifest["inputs"]["cache"] == "/somewhere/tokens.h5"


def test_samples_are_the_same_images_in_every_form(sampled, tmp_path):
    sampled(0, "sample", "-n", 10, "--format", "png", "-o", tmp_path / "pngs")
    as_set = next(p.parent for p in (tmp_path / "runs" / "samples").rglob("images.npz"))
    forms = [as_set, as_set / "images.npz", tmp_path / "pngs", tmp_path / "pngs" / "images", as_set / "ids.h5"]
    words = ("--ref", tmp_path / "photos", "--features", "toy", "--metrics", "kid")
    metrics = [sampled(0, "fid", form, *words)[0]["metrics"] for form in forms]
    assert all(found == metrics[0] for found in metrics)


def test_lost_originals_are_said(sampled, tmp_path):
    shutil.rmtree(tmp_path / "photos")
    _, said = sampled(1, "fid", "--features", "toy")
    assert "were moved or deleted" in said
    assert "--ref" in said
