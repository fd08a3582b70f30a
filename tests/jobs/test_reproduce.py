"""reproduce: from weights on a server to a verdict, each stage once; and when there is no verdict."""

import json

import hub_server
import numpy as np
import pytest
import torch
import toy_features

from titokctl.config.models import GeneratorConfig, TokenizerConfig, TransformerConfig
from titokctl.context import Context
from titokctl.errors import UsageError, UserError
from titokctl.evaluation.extractors import FeatureNetwork
from titokctl.jobs.evaluate.fid import FidResult
from titokctl.jobs.evaluate.reproduce import GENERATORS, TOLERANCE, Reproduce, not_comparable, verdict
from titokctl.models.inference import can_infer
from titokctl.models.initialization import initialize
from titokctl.models.maskgit.generator import MaskGit
from titokctl.models.titok.tokenizer import TiTok
from titokctl.weights.known import BY_NAME
from titokctl.weights.official.files import write_official
from titokctl.weights.store import Weights, save_tokenizer

NAME, SIZE, IMAGES = "titok-l-32", 24, 20
VIT = TransformerConfig(patch_size=8, width=16, num_layers=1, num_heads=2)
TOKENIZER = TokenizerConfig(
    image_size=SIZE, num_latent_tokens=8, encoder=VIT, decoder=VIT, codebook_size=32, token_size=4
)
GENERATOR = GeneratorConfig(
    num_latent_tokens=8, codebook_size=32, num_classes=4, width=16, num_layers=2, num_heads=2, mlp_width=32
)


def stand_ins(root):
    """Small networks under the repositories of the released ones; one in our layout, too small for the official one."""
    torch.manual_seed(0)
    tokenizer, generator = TiTok(TOKENIZER), MaskGit(GENERATOR)
    for network in (tokenizer, generator):
        initialize(network)
    folder = root / BY_NAME[NAME].repository
    save_tokenizer(folder / "model.safetensors", tokenizer)
    (folder / "config.json").write_text("{}")
    weights = Weights("generator", GENERATOR, generator.state_dict())
    write_official(root / BY_NAME[GENERATORS[NAME]].repository, weights)


@pytest.fixture
def reference(tmp_path):
    np.savez(tmp_path / "ref.npz", np.random.default_rng(1).integers(0, 256, (12, SIZE, SIZE, 3), dtype=np.uint8))
    return tmp_path / "ref.npz"


def test_from_a_server_to_a_result_and_again_without_the_work(tmp_path, reference, run_cli):
    pytest.importorskip("huggingface_hub")
    stand_ins(tmp_path / "hub")
    toy = toy_features.install(tmp_path / "package")
    caches = {"HF_HOME": str(tmp_path / "hf"), "TITOKCTL_WEIGHTS": str(tmp_path / "weights")}
    words = ("reproduce", NAME, "--ref", reference, "-n", IMAGES, "--features", "toy", "--json")
    with hub_server.serve(tmp_path / "hub") as (address, requests):
        first = run_cli(*words, env=hub_server.online(address) | toy | caches, code=0)
        assert len([r for r in requests if r.startswith("GET") and r.endswith("model.safetensors")]) == 2
    found = first.json
    assert (found["published"], found["lowest"], found["highest"]) == (2.77, 2.77 - TOLERANCE, 2.77 + TOLERANCE)
    assert (found["agrees"], found["images"]) == (None, IMAGES)
    assert any("not 50,000" in reason for reason in found["reasons"])
    assert any("this is not FID" in reason for reason in found["reasons"])
    manifest = json.loads((tmp_path / found["samples"] / "manifest.json").read_text())
    published = {"num_steps": 8, "guidance_scale": 4.5, "guidance_schedule": "linear", "choice_temperature": 9.5}
    assert manifest["settings"]["precision"] == found["precision"] == "float32"  # that of the official pipeline
    assert published.items() <= manifest["settings"]["sampling"].items()
    assert json.loads((tmp_path / found["samples"] / "reproduction.json").read_text())["measured"] == found["measured"]
    again = run_cli(*words, env=toy | caches, code=0)  # nobody to ask any more
    assert again.json == found
    assert "is finished already" in again.stderr
    assert "evaluation-toy.npz" in again.stderr
    other = "bf16" if can_infer("cpu", "bf16") else "tf32"
    lower = run_cli(*words, "--precision", other, env=toy | caches, code=0).json
    assert lower["samples"] != found["samples"]  # drawn, not taken from the set in float32
    manifest = json.loads((tmp_path / lower["samples"] / "manifest.json").read_text())
    kept = json.loads((tmp_path / lower["samples"] / "reproduction.json").read_text())
    assert manifest["settings"]["precision"] == kept["precision"] == lower["precision"] == other
    assert ("drawn in bf16, not in float32 or TF32" in lower["reasons"]) == (other == "bf16")


def test_what_is_missing_is_said_before_hours_are_spent(tmp_path, reference, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def go(name, ref, **settings):
        Reproduce(name, ref, **settings).run(Context(tmp_path / "runs"))

    with pytest.raises(UsageError, match="nothing was published for 'titok-bl-64-vq'"):
        go("titok-bl-64-vq", reference)
    with pytest.raises(UserError, match="reference not found:"):
        go(NAME, tmp_path / "nowhere.npz")
    with pytest.raises(UsageError, match="-n must be at least 2"):
        go(NAME, reference, num_images=1)
    with pytest.raises(UsageError, match="unknown precision 'half'"):
        go(NAME, reference, precision="half")
    with pytest.raises(UserError, match="titok-l-32 is not on this machine"):
        go(NAME, reference)
    assert not (tmp_path / "runs").exists()


def test_only_the_published_protocol_is_comparable():
    inception = FeatureNetwork()
    assert not_comparable(50_000, "tf32", inception, True) == []
    assert not_comparable(50_000, "float32", inception, True) == []
    assert not_comparable(50_000, "bf16", inception, True) == ["drawn in bf16, not in float32 or TF32"]
    assert not_comparable(50_000, "fp16", inception, True)
    assert not_comparable(49_999, "tf32", inception, True)
    assert not_comparable(50_000, "tf32", FeatureNetwork("lite0"), True)
    assert not_comparable(50_000, "tf32", FeatureNetwork(fast=True), True)
    assert not_comparable(50_000, "tf32", FeatureNetwork(tf32=True), True)
    assert not_comparable(50_000, "tf32", inception, False)


@pytest.mark.parametrize(
    ("measured", "agrees"), [(2.68, True), (2.86, True), (2.66, False), (2.88, False), (6.9, False)]
)
def test_the_verdict_follows_the_interval(tmp_path, measured, agrees):
    found = FidResult({"fid": measured}, {"count": 50_000}, {}, {"name": "inception"}, [], None)
    assert verdict(NAME, found, tmp_path, "tf32", []).agrees is agrees
    assert verdict(NAME, found, tmp_path, "tf32", ["another number of images"]).agrees is None


def test_each_pair_has_a_published_number_and_settings():
    from titokctl.config import recipe_files

    for tokenizer, generator in GENERATORS.items():
        assert BY_NAME[generator].gfid is not None
        assert BY_NAME[generator].num_latent_tokens == BY_NAME[tokenizer].num_latent_tokens
        recipe_files.load(tokenizer, "sampling")
