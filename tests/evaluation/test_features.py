"""Features do not depend on batches, neighbours or threads; networks are found by name."""

import numpy as np
import pytest
import torch

from titokctl.context import Context
from titokctl.errors import UsageError
from titokctl.evaluation.extractors import Extractor, FeatureNetwork, open_extractor
from titokctl.evaluation.features import extract, extract_all


def toy(batch_size: int = 4) -> Extractor:
    def network(images: torch.Tensor) -> dict[str, torch.Tensor]:
        assert len(images) == batch_size
        return {"pool": images.float().mean((1, 2)), "first": images[:, 0, 0, :1].float()}

    return Extractor("toy", network, {"pool": 3, "first": 1}, batch_size, "cpu")


def pictures(n: int, size: int = 6) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


@pytest.mark.parametrize("cuts", [[11], [1, 2, 3, 5], [4, 4, 3], [10, 1], [0, 11]])
def test_order_and_values_are_the_images_own_however_they_arrive(cuts):
    images = pictures(11)
    arrays = np.split(images, np.cumsum(cuts)[:-1])
    found = extract_all(toy(), arrays)
    np.testing.assert_allclose(found["pool"], images.mean((1, 2)), rtol=1e-6)
    assert found["first"][:, 0].tolist() == images[:, 0, 0, 0].tolist()


def test_only_a_few_batches_are_held_at_once():
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield pictures(4)

    stream = extract(toy(), endless())
    for _ in range(5):
        next(stream)
    stream.close()
    assert taken <= 5 + 2 * torch.get_num_threads() + 2


def test_no_images_give_no_features():
    assert extract_all(toy(), [])["pool"].shape == (0, 3)


def test_wrong_images_are_refused():
    with pytest.raises(ValueError, match=r"uint8, not \(2, 6, 6, 3\) float32"):
        extract_all(toy(), [pictures(2).astype(np.float32)])
    with pytest.raises(ValueError, match="different sizes"):
        extract_all(toy(), [pictures(2), pictures(2, size=8)])


def test_tf32_needs_a_gpu_and_excludes_bf16(run_cli, tmp_path):
    with pytest.raises(UsageError, match="--tf32 is for GPUs of NVIDIA, not for cpu") as caught:
        FeatureNetwork("lite0", tf32=True).open(Context(device="cpu"))
    assert "--fast" in caught.value.hint
    assert FeatureNetwork("lite0", tf32=True).precision == "tf32"
    with pytest.raises(UsageError, match="--fast and --tf32 are mutually exclusive"):
        FeatureNetwork("lite0", fast=True, tf32=True)
    refused = run_cli("fid", tmp_path, "--ref", tmp_path, "--features", "lite0", "--tf32", "--device", "cpu", code=2)
    assert "--tf32 is for GPUs" in refused.stderr


def test_threads_and_neighbours_change_no_bit():
    images = pictures(6, size=64)
    extractor = open_extractor("lite0")
    before = torch.get_num_threads()
    whole = extract_all(extractor, [images])["pool"]
    try:
        torch.set_num_threads(2)
        threaded = extract_all(extractor, [images])["pool"]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    alone = extract_all(extractor, [images[5:]])["pool"]
    assert whole.shape == (6, 1280)
    assert np.array_equal(whole, threaded)
    assert np.array_equal(whole[5:], alone)


def test_an_unknown_network_is_refused_with_the_known_names():
    with pytest.raises(UsageError) as caught:
        open_extractor("lite1")
    assert "lite0" in caught.value.hint


def test_a_network_can_come_from_an_entry_point(tmp_path, monkeypatch):
    info = tmp_path / "elsewhere-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[titokctl.features]\nbrightness = elsewhere_features:make\n")
    (tmp_path / "elsewhere_features.py").write_text(
        "from titokctl.evaluation.extractors import Extractor\n"
        "def make(options):\n"
        "    network = lambda images: {'pool': images.float().mean((1, 2, 3))[:, None]}\n"
        "    return Extractor('brightness', network, {'pool': 1}, 8, options.device)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = extract_all(open_extractor("brightness"), [pictures(3)])
    assert found["pool"].shape == (3, 1)
    with pytest.raises(UsageError) as caught:
        open_extractor("lite1")
    assert caught.value.hint.startswith("known here: brightness, inception, inception-clean")


def test_a_distance_on_other_features_is_never_called_fid():
    assert open_extractor("lite0").metric_name("fid") == "fd-lite0"
    assert open_extractor("lite0").metric_name("kid") == "kid-lite0"
    assert not open_extractor("lite0").is_fid
