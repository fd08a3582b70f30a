"""Classes that had no images: they are recorded by train-gen, left out by sample, and drawn only when asked for."""

import json
from pathlib import Path

import pytest
import trained
from caches import write_cache
from remarks import Remarks

from titokctl.context import Context
from titokctl.errors import UsageError
from titokctl.formats.run_folder import open_run
from titokctl.formats.sample_set import SampleSet
from titokctl.formats.token_cache import TokenCache
from titokctl.jobs.caches.inspect import Inspect
from titokctl.jobs.sample.request import Sample
from titokctl.jobs.train.generator import TrainGenerator

NAMES = ("ant", "bee", "cat", "dog", "eel")
RECIPE = f"""
kind: generator
model: {{architecture: vit, num_latent_tokens: {trained.TOKENS}, codebook_size: {trained.CODES}, num_classes: 21,
        width: 32, num_layers: 2, num_heads: 2, mlp_width: 64}}
optimizer: {{learning_rate: 1e-3}}
schedule: {{warmup_steps: 1}}
training: {{steps: 2, global_batch_size: 16}}
sampling: {{num_steps: 2}}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The runs folder, and what train-gen said; three of the five classes have rows."""
    folder = tmp_path_factory.mktemp("learnt")
    hashes = trained.tokenizer_run(folder / "runs")
    sizes = {"codes": trained.CODES, "tokens": trained.TOKENS, "class_names": NAMES}
    cache = write_cache(folder / "tokens.h5", 60, **sizes, **hashes)
    (folder / "recipe.yaml").write_text(RECIPE)
    talk = Remarks()
    TrainGenerator(cache, str(folder / "recipe.yaml"), name="gen").run(Context(folder / "runs", progress=talk))
    return folder, talk


def drawn(folder: Path, classes, **more) -> tuple[list[int], Remarks]:
    talk = Remarks()
    request = Sample(classes=classes, num_images=6, image_format="none", **more)
    found = request.run(Context(folder / "runs", progress=talk))
    return TokenCache.open(SampleSet.open(found.samples).ids).labels.tolist(), talk


def test_the_lineage_counts_the_rows_of_each_class(made):
    folder, talk = made
    run = open_run(folder / "runs" / "generator" / "gen")
    labels = TokenCache.open(folder / "tokens.h5").labels.tolist()
    assert run.inputs["class_rows"] == [labels.count(c) for c in range(5)]
    assert run.inputs["class_names"] == list(NAMES)
    assert run.settings["model"]["num_classes"] == 5, "from the data, not from the recipe"
    assert "--set model.num_classes=21 keeps the recipe's" in talk
    assert "for 2 of the 5 classes" in talk


def test_only_learnt_classes_are_drawn_by_default(made):
    labels, talk = drawn(made[0], None)
    assert labels == [0, 1, 2, 0, 1, 2]
    assert "leaving out 2 of 5 classes that were not learnt (dog, eel); --classes all draws them" in talk


@pytest.mark.parametrize(("classes", "expected"), [("all", [0, 1, 2, 3, 4, 0]), (["eel", 1], [4, 1] * 3)])
def test_others_are_drawn_with_a_warning(made, classes, expected):
    labels, talk = drawn(made[0], classes)
    assert labels == expected
    assert "warning: training had no images of" in talk


def test_draws_without_a_class(made):
    labels, talk = drawn(made[0], "none")
    assert labels == [-1] * 6
    assert "warning" not in talk
    with pytest.raises(UsageError, match="drawn without classes"):
        Sample(classes="none", per_class=2).plan(Context(made[0] / "runs"))


def test_on_the_command_line(made, run_cli):
    words = ("sample", "-n", 4, "--format", "none", "--runs-dir", made[0] / "runs", "--device", "cpu", "--json")
    done = run_cli(*words, "--classes", "0-1,cat,3", code=0)
    assert TokenCache.open(SampleSet.open(Path(done.json["samples"])).ids).labels.tolist() == [0, 1, 2, 3]
    plan = run_cli(*words, "--classes", "none", "--dry-run", code=0)
    assert json.loads(plan.stdout)["settings"]["classes"] is None


def test_inspect_counts_classes_by_rows(made, tmp_path):
    facts = Inspect(made[0] / "tokens.h5").run(Context()).facts
    assert (facts["classes"], facts["class names"]) == (3, 5)
    nameless = write_cache(tmp_path / "t.h5", 60, class_names=("",) * 0)
    assert Inspect(nameless).run(Context()).facts["classes"] == 3
