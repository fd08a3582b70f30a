"""The example package: a quantizer from outside the tree, installed as people install it, through the whole chain."""

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

import titokctl
from titokctl.cli.app import run
from titokctl.config import recipe_files
from titokctl.config.models import TokenizerConfig
from titokctl.errors import UserError
from titokctl.formats.run_folder import finished_runs
from titokctl.formats.sample_set import SampleSet
from titokctl.formats.token_cache import TokenCache
from titokctl.models.titok import quantizers

EXAMPLE = Path(titokctl.__file__).resolve().parents[1] / "examples" / "fsq"
SMALL = [
    "model.num_latent_tokens=8", "model.codebook_size=240", "model.token_size=3", "model.encoder.width=32",
    "model.decoder.width=32", "training.steps=12", "training.global_batch_size=8", "training.precision=float32",
]  # fmt: skip
SMALL_GENERATOR = [
    "model.num_latent_tokens=8", "model.codebook_size=240", "model.num_classes=2", "model.width=32",
    "model.mlp_width=64", "training.steps=6", "training.global_batch_size=8", "training.precision=float32",
]  # fmt: skip


@pytest.fixture
def fsq(installed, monkeypatch):
    """A quantizer of 8 x 6 x 5 levels."""
    monkeypatch.syspath_prepend(installed)
    return quantizers.build(config(240, 3))


def config(codes: int, channels: int) -> TokenizerConfig:
    model = recipe_files.load(str(EXAMPLE / "tokenizer.yaml"), "tokenizer").model
    return model.model_copy(update={"codebook_size": codes, "token_size": channels})


def titokctl_does(*words: object) -> None:
    assert run([str(word) for word in words]) == 0


def settings(values: list[str]) -> list[str]:
    return [f"--set={value}" for value in values]


def test_codes_are_the_levels_counted_through(fsq):
    vectors = fsq.vectors_of(torch.arange(240)[None])[0]  # (V, C)
    assert len(torch.unique(vectors, dim=0)) == 240
    assert vectors[0].tolist() == [-1.0, -1.0, -1.0]
    torch.testing.assert_close(vectors[-1], torch.tensor([3 / 4, 2 / 3, 1.0]))


def test_training_and_inference_see_the_same(fsq):
    latents = (1.5 * torch.randn(256, 32, 3, generator=torch.Generator().manual_seed(0))).requires_grad_()
    out = fsq(latents)
    assert torch.equal(out.ids, fsq.nearest(latents))
    assert torch.equal(out.vectors, fsq.vectors_of(out.ids))
    assert set(out.ids.unique().tolist()) == set(range(240)), "every code can be reached"
    out.vectors.sum().backward()
    assert latents.grad.abs().max() > 0


def test_levels_that_are_not_there_are_named(fsq):
    with pytest.raises(UserError, match="no levels for codebook_size 64") as refused:
        quantizers.build(config(64, 3))
    assert "240 x 3" in refused.value.hint


def test_the_whole_chain(fsq, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TITOKCTL_RUNS", "runs")
    tiny.class_folder(Path("pictures"), per_class=8)
    titokctl_does(
        "train-tokenizer", "pictures", "--recipe", EXAMPLE / "tokenizer.yaml", *settings(SMALL), "--val", "pictures"
    )
    trained = finished_runs(Path("runs"), "tokenizer")[0]
    titokctl_does("tokenize", "pictures", "-o", "tokens.h5", "--device", "cpu")
    cache = TokenCache.open("tokens.h5")
    assert (cache.codebook_size, cache.header.token_size, len(cache)) == (240, 0, 16)
    assert cache.header.encoder_sha256 == trained.hashes["encoder_sha256"]
    assert len(np.unique(cache.ids)) > 4
    titokctl_does("verify", "tokens.h5", "--source", "recorded", "--sample", "4")
    titokctl_does("train-gen", "tokens.h5", "--recipe", "tiny", *settings(SMALL_GENERATOR))
    titokctl_does("sample", "-n", "4", "-o", "samples")
    assert SampleSet.open("samples").manifest["num_images"] == 4
    titokctl_does("preview", "tokens.h5", "-o", "rows.png", "-n", "4")
    titokctl_does("reconstruct", "pictures", "-o", "seen")
    with Image.open("rows.png") as picture:
        assert picture.size[0] > 64


@pytest.mark.slow
def test_the_two_stages(fsq, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TITOKCTL_RUNS", "runs")
    tiny.class_folder(Path("pictures"), per_class=8)
    short = ["training.steps=4", "training.global_batch_size=4", "training.precision=float32"]
    mine = ["model.quantizer=fsq", "model.codebook_size=240", "model.token_size=3", "model.normalize_codes=false"]
    titokctl_does("train-tokenizer", "pictures", "--recipe", "tiny-vqgan", *settings(short))
    for stage in ("tiny-proxy", "tiny-decoder"):
        no_network = ["loss.perceptual=none"] if stage == "tiny-decoder" else []
        titokctl_does("train-tokenizer", "pictures", "--recipe", stage, *settings([*short, *mine, *no_network]))
    first, second = (run.hashes["encoder_sha256"] for run in finished_runs(Path("runs"), "tokenizer"))
    assert first == second, "the second stage leaves ids as they are"
