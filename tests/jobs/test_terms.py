"""The images' terms of use are recorded in every product made from them."""

import json
import tarfile
from pathlib import Path

import pytest
import tiny
from safetensors import safe_open
from trained import both, tokenizer_run

from titokctl.cli.app import run
from titokctl.data.sources import open_source
from titokctl.data.sources.imagenet import IMAGENET, terms_of
from titokctl.formats.run_folder import finished_runs
from titokctl.formats.sample_set import SampleSet
from titokctl.formats.token_cache import TokenCache

SYNSETS = ("n01440764", "n01443537")
SMALL = ["num_latent_tokens=8", "codebook_size=32", "num_classes=2", "width=16", "mlp_width=32", "num_layers=2"]
SHORT = ["training.steps=2", "training.global_batch_size=8", "training.precision=float32", "views=[plain]"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TITOKCTL_RUNS", "runs")
    tokenizer_run(Path("runs"))
    tiny.class_folder(Path("imagenet"), per_class=5, names=SYNSETS)
    tiny.class_folder(Path("own"), per_class=5)
    return tmp_path


def does(*words: str) -> None:
    assert run([*words, "--quiet"]) == 0


def terms(path: str) -> str:
    return TokenCache.open(path).header.terms


def test_imagenet_is_recognised(here: Path) -> None:
    assert terms_of(open_source(["imagenet"])) == IMAGENET
    assert terms_of(open_source(["own"])) == ""
    tiny.shards(Path("shards"), 1, 3)
    assert terms_of(open_source(["shards/000.tar"])) == ""
    Path("shards/000.tar").rename("ILSVRC2012_img_val.tar")
    assert terms_of(open_source(["ILSVRC2012_img_val.tar"])) == IMAGENET


def test_from_images_to_samples(here: Path) -> None:
    does("tokenize", "imagenet", "-o", "a.h5", "--views", "none")
    does("tokenize", "own", "-o", "b.h5", "--views", "none", "--terms", "CC0, by the tests")
    does("tokenize", "imagenet", "-o", "c/", "--views", "none", "--terms", "")
    assert [terms(path) for path in ("a.h5", "b.h5", "c")] == [IMAGENET, "CC0, by the tests", ""]
    does("merge", "a.h5", "a.h5", "-o", "alike.h5")
    assert terms("alike.h5") == IMAGENET

    does("export", "a.h5", "--to", "safetensors")
    with safe_open("a.safetensors", "np") as file:
        assert file.metadata()["terms"] == IMAGENET
    does("export", "a.h5", "--to", "wds")
    with tarfile.open("a-wds/tokens-000000.tar") as tar:
        assert json.load(tar.extractfile("000000000.json"))["terms"] == IMAGENET  # type: ignore[arg-type]

    fields = [f"--set={field}" for field in [*(f"model.{field}" for field in SMALL), *SHORT]]
    does("train-gen", "a.h5", "--recipe", "tiny", *fields)
    does("sample", "-n", "2")
    samples = finished_runs(Path("runs"), "samples")[0].path
    assert SampleSet.open(samples).manifest["terms"] == terms(str(samples / "ids.h5")) == IMAGENET


def test_terms_that_are_too_long_are_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tokenize", "own", "-o", "a.h5", "--terms", "x" * 5000]) == 2
    assert "--terms has more than 4,096 bytes" in capsys.readouterr().err


def test_terms_of_several_caches_are_joined(here: Path) -> None:
    for name, said in (("one", "first"), ("two", "second"), ("three", "first"), ("four", "")):
        does("tokenize", "own", "-o", f"{name}.h5", "--views", "none", "--terms", said)
    does("merge", "one.h5", "two.h5", "three.h5", "four.h5", "-o", "all.h5")
    assert terms("all.h5") == "first; second"


def test_samples_of_images_without_terms_have_none(here: Path) -> None:
    both(Path("runs"))
    does("sample", "-n", "2", "--generator", "runs/generator/gen", "-o", "drawn")
    assert "terms" not in SampleSet.open("drawn").manifest
    assert terms("drawn/ids.h5") == ""
