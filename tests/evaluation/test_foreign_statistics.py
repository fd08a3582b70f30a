"""Statistics that other programs made: matched by the resize of their program, and warned of without it."""

import numpy as np
import pytest
import torch
from golden import fill, keys
from PIL import Image
from torch.nn import functional as F

from titokctl.context import Context
from titokctl.errors import UsageError
from titokctl.evaluation.extractors import (
    INCEPTIONS,
    Extractor,
    ExtractorOptions,
    FeatureNetwork,
    inception_extractor,
)
from titokctl.evaluation.feature_pass import FeaturePass, measured_samples, statistics_key
from titokctl.evaluation.image_sets import Opening, open_images
from titokctl.evaluation.reference import find_reference
from titokctl.evaluation.warnings import warnings_about
from titokctl.models.inception import RESIZES, Inception
from titokctl.weights.feature_networks import inception_from

COUNT, SIZE = 6, 64


@pytest.fixture(scope="module")
def network() -> Inception:
    """Weights by formula."""
    table = {name: torch.from_numpy(fill(name, shape)) for name, shape in keys("inception").items() if shape}
    return inception_from(table)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8, 3), dtype=np.uint8)
    return coarse.repeat(SIZE // 8, 1).repeat(SIZE // 8, 2)


def as_pytorch_fid(images: np.ndarray) -> torch.Tensor:
    """The input of the network as a tensor in [-1, 1], by pytorch-fid's rule."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    return 2 * F.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False) - 1


def as_clean_fid(images: np.ndarray) -> torch.Tensor:
    """The same by clean-fid's: Pillow's bicubic on each channel as float."""
    channels = [
        [np.asarray(Image.fromarray(one[..., c].astype(np.float32)).resize((299, 299), Image.Resampling.BICUBIC))
         for c in range(3)]
        for one in images
    ]  # fmt: skip
    return (torch.from_numpy(np.array(channels)).clamp(0, 255) - 128) / 128


@pytest.fixture(scope="module")
def made(network, pixels, tmp_path_factory):
    """A folder with images, and the file that each other program would make of them: mu and sigma alone."""
    root = tmp_path_factory.mktemp("foreign")
    np.savez(root / "samples.npz", pixels)
    for name, rule in (("pytorch", as_pytorch_fid), ("clean", as_clean_fid)):
        given = rule(pixels)
        with torch.inference_mode():  # images of 299 px, which no rule changes any more
            features = network((given + 1) * 127.5, "pytorch").pool_2048.double().numpy()
        np.savez(root / f"{name}.npz", mu=features.mean(0), sigma=np.cov(features, rowvar=False))
    return root


def judged(network: Inception, root, resize: str, reference: str, runs) -> tuple[float, list[str]]:
    """The distance to a reference, as the difference of means and covariances, and the warnings."""
    extractor: Extractor = inception_extractor(network, ExtractorOptions(), resize)
    context = Context(runs)
    opening, work = Opening(context), FeaturePass(extractor, context)
    samples = open_images(root / "samples.npz", opening)
    found = find_reference(root / reference, samples, False, opening, work)
    measured = measured_samples(samples, False, work)
    ours, theirs = measured.features.pool, found.features.pool
    distance = np.linalg.norm(ours.mean - theirs.mean) + np.linalg.norm(ours.covariance - theirs.covariance)
    return float(distance), warnings_about(samples, measured, found, extractor)


@pytest.mark.parametrize("program", ["pytorch", "clean"])
def test_with_its_resize_the_same_images_are_at_distance_zero(network, made, program, tmp_path):
    matched, warnings = judged(network, made, program, f"{program}.npz", tmp_path)
    unmatched, warned = judged(network, made, "tf1", f"{program}.npz", tmp_path)
    assert matched < 1e-3 * unmatched
    assert not any("the program that made it is unknown" in warning for warning in warnings)
    assert any("--resize pytorch or --resize clean" in warning for warning in warned)


def test_adms_statistics_are_of_the_usual_resize(network, made, tmp_path):
    with np.load(made / "clean.npz") as clean:
        np.savez(made / "adm.npz", **clean, mu_s=np.zeros(2023), sigma_s=np.eye(2023))
    assert any("leave out --resize" in warning for warning in judged(network, made, "clean", "adm.npz", tmp_path)[1])


def test_each_resize_has_statistics_and_results_of_its_own(network, made, tmp_path):
    samples, keys_found, beside = open_images(made / "samples.npz", Opening(Context(tmp_path))), set(), set()
    for resize, name in INCEPTIONS.items():
        extractor = inception_extractor(network, ExtractorOptions(), resize)
        assert extractor.name == name
        assert extractor.is_fid == (resize == "tf1")
        keys_found.add(statistics_key(samples, extractor.name, extractor.description))
        beside.add(samples.beside(f"{extractor.name}.json"))
    assert len(keys_found) == len(beside) == len(RESIZES) == 3
    assert inception_extractor(network, ExtractorOptions(), "clean").metric_name("fid") == "fd-inception-clean"


def test_the_option_names_the_network(run_cli, made, tmp_path):
    resize = "clean"
    words = ("fid", made / "samples.npz", "--ref", made / "clean.npz", "--resize", resize)
    found = run_cli(*words, env={"TORCH_HOME": str(tmp_path / "torch")}, code=1)
    assert "weights-inception-2015-12-05-6726825d.pth" in found.stderr
    refused = run_cli(*words, "--features", "lite0", code=2)
    assert f"--resize {resize} is for Inception, not for lite0" in refused.stderr


def test_weights_may_be_named_for_each_of_them(tmp_path):
    for name in INCEPTIONS.values():
        assert FeatureNetwork(name, tmp_path / "weights.pth").weights == tmp_path / "weights.pth"
    with pytest.raises(UsageError, match="--inception-weights was given with --features lite0"):
        FeatureNetwork("lite0", tmp_path / "weights.pth")
