"""The example package: a generator of another kind from outside the tree, from a token cache to a score."""

import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import toy_features
import trained

import titokctl
from titokctl.cli.app import run
from titokctl.config import recipe_files
from titokctl.config.sampling import SamplingConfig
from titokctl.errors import UsageError, UserError
from titokctl.formats.run_folder import finished_runs
from titokctl.formats.sample_set import SampleSet
from titokctl.models import generator_kinds
from titokctl.models.generator import Generator
from titokctl.sampling.decoding import sample_ids
from titokctl.weights.load import load_generator
from titokctl.weights.store import save_generator

EXAMPLE = Path(titokctl.__file__).resolve().parents[1] / "examples" / "causal"
SIZE = 24
RECIPE = EXAMPLE / "generator.yaml"
SMALL = [
    f"model.num_latent_tokens={trained.TOKENS}", f"model.codebook_size={trained.CODES}", "model.num_classes=2",
    "model.width=32", "model.num_layers=2", "training.steps=6", "training.global_batch_size=8", "views=[plain]",
    "training.precision=float32", "training.evaluate_every=3", "training.checkpoint_every=3", "val_fraction=0.2",
]  # fmt: skip


@pytest.fixture
def causal(installed, monkeypatch) -> Generator:
    """A small causal generator with visible differences between its logits."""
    monkeypatch.syspath_prepend(installed)
    torch.manual_seed(0)
    model = generator_kinds.build(recipe_files.load(str(RECIPE), "generator", SMALL).model)
    return tiny.enlarged(model)


def titokctl_does(*words: object) -> None:
    assert run([str(word) for word in words]) == 0


def settings(values: list[str]) -> list[str]:
    return [f"--set={value}" for value in values]


def test_no_position_sees_its_own_id_or_a_later_one(causal):
    ids = torch.randint(trained.CODES, (2, trained.TOKENS), generator=torch.Generator().manual_seed(0))
    changed = ids.clone()
    changed[:, 3:] = (changed[:, 3:] + 1) % trained.CODES
    labels = torch.tensor([0, 1])
    with torch.inference_mode():
        before, after = causal(ids, labels), causal(changed, labels)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.equal(before[:, 4], after[:, 4])


def test_an_image_depends_on_its_label_and_its_index_alone(causal):
    labels, drawing = torch.tensor([0, 1, 0, 1]), SamplingConfig(guidance_scale=1.0, guidance_schedule="linear")
    whole = sample_ids(causal, labels, drawing)
    assert torch.equal(sample_ids(causal, labels[2:], drawing, torch.tensor([2, 3])), whole[2:])
    assert len(whole.unique(dim=0)) == 4
    assert sample_ids(causal, None, drawing, torch.arange(3)).shape == (3, trained.TOKENS)


def test_from_a_cache_to_a_score(causal, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TITOKCTL_RUNS", "runs")
    monkeypatch.syspath_prepend(tmp_path / "package")
    toy_features.install(tmp_path / "package")
    trained.tokenizer_run(Path("runs"), image_size=SIZE)
    np.savez("ref.npz", np.random.default_rng(1).integers(0, 256, (8, SIZE, SIZE, 3), np.uint8))
    tiny.class_folder(Path("pictures"), per_class=12)
    titokctl_does("tokenize", "pictures", "-o", "tokens.h5", "--device", "cpu")
    training = ["train-gen", "tokens.h5", "--recipe", RECIPE, "--device", "cpu", *settings(SMALL)]
    titokctl_does(*training, "--dry-run")
    titokctl_does(*training)
    (trained_run,) = finished_runs(Path("runs"), "generator")
    assert trained_run.settings["model"]["kind"] == "causal"
    assert list(trained_run.path.glob("samples-*.png")), "previews"
    assert load_generator(trained_run.path).config.kind == "causal"
    titokctl_does("sample", "-n", "4", "--cfg", "1.0", "-o", "samples", "--device", "cpu")
    assert SampleSet.open(Path("samples")).manifest["num_images"] == 4
    assert run(["sample", "-n", "4", "--steps", "4", "-o", "other"]) == 2, "a setting that this kind has not"
    titokctl_does("fid", "samples", "--ref", "ref.npz", "--features", "toy", "--metrics", "fid", "--device", "cpu")


def test_without_the_package_the_kind_is_named():
    with pytest.raises(UsageError, match="unknown generator kind 'causal'"):
        recipe_files.load(str(RECIPE), "generator")


def test_weights_of_a_kind_that_is_not_installed_are_refused(causal, tmp_path, monkeypatch, installed):
    save_generator(tmp_path / "weights.safetensors", causal)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(installed)])
    with pytest.raises(UserError, match="unknown generator kind 'causal'"):
        load_generator(tmp_path / "weights.safetensors")
