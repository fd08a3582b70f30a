"""The models that are part of the package: their names, their recipes, and drawing from them without a runs folder.

Small stand-ins in the weights folder take their names here; they are made with the commands that make the real ones.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import trained

from titokctl.config import recipe_files
from titokctl.errors import UserError
from titokctl.formats.token_cache import TokenCache
from titokctl.weights.hashes import encoder_sha256, weights_sha256
from titokctl.weights.known import BUNDLED, BY_NAME
from titokctl.weights.load import load_generator, load_tokenizer
from titokctl.weights.local import bundled_file
from titokctl.weights.read import read


@pytest.fixture
def stand_ins(run_cli, tmp_path, monkeypatch) -> Path:
    """A folder of weights with a small tokenizer and generator under the bundled names, both rounded to bf16."""
    folder, elsewhere = tmp_path / "weights", tmp_path / "elsewhere"
    monkeypatch.setenv("TITOKCTL_WEIGHTS", str(folder))
    folder.mkdir()
    trained.tokenizer_run(elsewhere)
    words = (elsewhere / "tokenizer/tok", "-o", folder / "scenes-64.safetensors", "--dtype", "bf16")
    run_cli("convert", *words, code=0)
    tokenizer = load_tokenizer("scenes-64")
    hashes = {"encoder_sha256": encoder_sha256(tokenizer), "weights_sha256": weights_sha256(tokenizer)}
    generator = trained.generator_run(elsewhere, hashes)
    run_cli("convert", generator, "-o", folder / "maskgit-scenes-64.safetensors", "--dtype", "bf16", code=0)
    return folder


def test_the_bundled_models_are_those_of_the_recipes_and_small():
    for known in BUNDLED:
        assert recipe_files.load("scenes-64", known.kind).model == known.config
    assert sum(bundled_file(known).stat().st_size for known in BUNDLED) < 16e6


def test_classes_by_name_from_the_bundled_generator(run_cli, runs, tmp_path, stand_ins):
    """The tokenizer's name finds the generator, whose recorded hash finds the tokenizer."""
    done = run_cli("sample", "--generator", "scenes-64", "--classes", "cat,ant", "-n", "5", "-o", "drawn", code=0)
    assert "tokenizer: scenes-64" in done.stderr
    cache = TokenCache.open(tmp_path / "drawn/ids.h5")
    assert cache.labels.tolist() == [2, 0, 2, 0, 2]
    assert np.load(tmp_path / "drawn/images.npz")["arr_0"].shape == (5, trained.SIZE, trained.SIZE, 3)
    refused = run_cli("sample", "--generator", "scenes-64", "--classes", "cow", "-n", "5", code=2)
    assert "no class named 'cow'" in refused.stderr
    assert "ant, bee, cat" in " ".join(refused.stderr.split())


@pytest.mark.parametrize(
    "source",
    [
        {"kind": "shards", "paths": ["a.tar"], "folders": ["/pictures/of/me/train"]},
        {"nested": [{"file": "/pictures/of/me/x.tar"}]},
    ],
)
def test_no_record_of_a_rounded_generator_tells_where_its_images_were(run_cli, tmp_path, source):
    classes = ["/m/0abc", "bee", "cat"]  # names may look like paths
    made_by = {"encoder_sha256": "0" * 64, "weights_sha256": "0" * 64, "class_names": classes}
    generator = trained.generator_run(tmp_path, made_by, source=source)
    run_cli("convert", generator, "-o", "g.safetensors", "--dtype", "bf16", code=0)
    inputs = json.loads(read(tmp_path / "g.safetensors").extra["inputs"])
    assert "/pictures/of/me" not in json.dumps(inputs)
    assert inputs["class_names"] == classes


def test_rounding_halves_the_file_and_drops_places_on_the_machine(stand_ins, tmp_path):
    whole = tmp_path / "elsewhere/generator/gen/weights.safetensors"
    rounded = stand_ins / "maskgit-scenes-64.safetensors"
    assert b"/somewhere/tokens.h5" in whole.read_bytes()
    assert b"/somewhere" not in rounded.read_bytes()
    one, other = load_generator(whole).state_dict(), load_generator(rounded).state_dict()
    assert all((one[name].bfloat16() == other[name].bfloat16()).all() for name in one)
    assert any((one[name] != other[name]).any() for name in one)


def test_rounding_is_not_for_the_official_layout(run_cli, stand_ins):
    refused = run_cli("convert", "scenes-64", "-o", "official", "--to", "official", "--dtype", "bf16", code=2)
    assert "--dtype is for titokctl files" in refused.stderr


def test_only_a_generator_may_go_by_its_tokenizers_name():
    assert BY_NAME["maskgit-vit-l-32"].tokenizer == "titok-l-32"
    with pytest.raises(UserError, match="is a generator, but a tokenizer is expected"):
        load_tokenizer("maskgit-scenes-64")
