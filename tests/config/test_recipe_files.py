"""Recipes: every problem at once with the path of its field, and every value meaning what its author meant."""

from pathlib import Path

import pytest
import torch

from titokctl.config import recipe_files
from titokctl.config.differences import flat_differences
from titokctl.config.recipe_files import apply_override, check, find, load, recipes_folder, shipped
from titokctl.config.yaml_reader import read_mapping
from titokctl.errors import UsageError

TOKENIZER = """\
# A tokenizer for these tests
kind: tokenizer
stage: single
model:
  image_size: 32
  num_latent_tokens: 8
  encoder: {patch_size: 8, width: 32, num_layers: 1, num_heads: 4}
  decoder: {patch_size: 8, width: 32, num_layers: 1, num_heads: 4}
optimizer: {learning_rate: 1e-4, betas: [0.9, 0.99]}
schedule: {warmup_steps: 5}
training: {steps: 10, global_batch_size: 4}
"""


@pytest.fixture
def write(tmp_path):
    """Write a recipe file: `write(old=new, ...)` changes lines of TOKENIZER, `write(text)` writes that."""

    def to_file(*changes: tuple[str, str], text: str = TOKENIZER) -> str:
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return to_file


def problem(name: str, *overrides: str, kind: str = "tokenizer") -> str:
    """Return the error message for a recipe."""
    with pytest.raises(UsageError) as caught:
        load(name, kind, overrides)
    assert caught.value.exit_code == 2
    return caught.value.message


def test_a_recipe_is_read(write):
    recipe = load(write(), "tokenizer")
    assert recipe.model.encoder.width == 32
    assert recipe.optimizer.learning_rate == 1e-4
    assert recipe.optimizer.betas == (0.9, 0.99)
    assert recipe.schedule.kind == "cosine"


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.0e-4", "0.0001", "1.e-4", ".0001", "+1e-4"])
def test_scientific_notation_is_a_number(write, text):
    assert load(write(("1e-4", text)), "tokenizer").optimizer.learning_rate == 1e-4


def test_quoted_numbers_are_text(write):
    found = problem(write(("1e-4", "'1e-4'")))
    assert 'optimizer.learning_rate: should be a valid number, not "1e-4"' in found


def test_all_problems_are_named_at_once_with_their_fields(write):
    found = problem(
        write(
            ("num_latent_tokens: 8", "num_latent_token: 8"),
            ("stage: single", "stage: twice"),
            ("width: 32, num_layers: 1", "width: wide, num_layers: 1.5"),
            ("steps: 10", "steps: 0"),
            ("optimizer:", "optimiser:"),
        )
    )
    lines = [line.strip() for line in found.splitlines()]
    assert lines[0].endswith("has 10 problems:")
    assert 'stage: should be one of single, vqgan, proxy, decoder, not "twice"' in lines
    assert "model.num_latent_tokens: missing" in lines
    assert "model.num_latent_token: unknown field; did you mean num_latent_tokens?" in lines
    assert 'model.encoder.width: should be a valid integer, not "wide"' in lines
    assert "model.encoder.num_layers: should be a valid integer, not 1.5" in lines
    assert 'model.decoder.width: should be a valid integer, not "wide"' in lines
    assert "training.steps: should be greater than or equal to 1, not 0" in lines
    assert "optimizer: missing" in lines
    assert "optimiser: unknown field; did you mean optimizer?" in lines


def test_a_field_in_the_wrong_section_is_shown_its_place(write):
    found = problem(write(("stage: single", "stage: single\nsteps: 3")))
    assert "steps: unknown field; did you mean training.steps?" in found


def test_a_name_like_no_other_gets_no_guess(write):
    assert "qqqq: unknown field" in problem(write(("stage: single", "stage: single\nqqqq: 3"))).splitlines()[1]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("width: 32, num_layers: 1, num_heads: 4", "width: 30, num_layers: 1, num_heads: 4", "30 is not a multiple of"),
        ("image_size: 32", "image_size: 36", "image_size 36 is not a multiple of encoder.patch_size 8"),
        ("global_batch_size: 4", "global_batch_size: 4, micro_batch_size: 3", "4 is not a multiple of micro"),
        ("learning_rate: 1e-4", "learning_rate: .inf", "optimizer.learning_rate: should be a finite number"),
        ("learning_rate: 1e-4", "learning_rate: true", "optimizer.learning_rate: should be a valid number, not true"),
        ("steps: 10", "steps: 10.0", "training.steps: should be a valid integer, not 10.0"),
        ("steps: 10", "steps:", "training.steps: should be a valid integer, not null"),
        ("betas: [0.9, 0.99]", "betas: [0.9]", "optimizer.betas.1: missing"),
        ("schedule: {warmup_steps: 5}", "schedule: 5", "schedule: should be an object, not 5"),
        ("patch_size: 8, width", "patch_size: 8, colour: red, width", "model.encoder.colour: unknown field"),
    ],
)  # fmt: skip
def test_errors_are_named(write, old, new, message):
    assert message in problem(write((old, new)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: tokenizer\nkind: generator\n", "duplicate key 'kind'"),
        ("a: {b: 1, b: 2}\n", "duplicate key 'b' (in the section at line 1)"),
        ("1: 2\n", "the key 1 is not text"),
        ("? [a, b]\n: 1\n", "is not text"),
        ("a: &x {b: 1}\nc: *x\n", "an alias (*name) near line 2"),
        ("a: &x [*x]\n", "an alias"),
        ("a: &x 1\n<<: {b: 2}\nc: *x\n", "an alias"),
        ("a: [1\n", "is not valid YAML"),
        ("a: 2020-99-99\n", "is not valid YAML"),
        ("a: !!python/object/apply:os.getcwd []\n", "is not valid YAML"),
        ("[" * 5000, "is not valid YAML"),
        ("- 1\n", "is not a recipe"),
        ("", "is not a recipe"),
        ("# nothing\n", "is not a recipe"),
    ],
)
def test_files_that_are_not_recipes_are_refused(write, text, message):
    assert message in problem(write(text=text))


def test_unreadable_files_are_refused(tmp_path):
    path = tmp_path / "recipe.yaml"
    assert "recipe file not found" in problem(str(path))
    path.write_bytes(b"\xff\xfe\x00")
    assert "is not valid YAML" in problem(str(path))
    path.write_bytes(b"#" * 2_000_000)
    assert "too large for a recipe" in problem(str(path))


def test_a_recipe_of_another_kind_is_refused(write):
    with pytest.raises(UsageError, match="is a tokenizer recipe, not a generator recipe") as caught:
        load(write(), "generator")
    assert "train-tokenizer" in caught.value.hint
    with pytest.raises(UsageError, match="does not say its kind"):
        load(write(("kind: tokenizer\n", "")), "tokenizer")
    with pytest.raises(UsageError, match="kind: should be 'tokenizer', not"):
        check(Path(write(("kind: tokenizer", "kind: tokeniser"))))


def test_overrides_come_after_the_recipe_and_the_last_one_wins(write):
    recipe = load(
        write(),
        "tokenizer",
        [
            "training.steps=20",
            "training.steps=30",
            "optimizer.learning_rate=1e-3",
            "optimizer.betas=[0.8, 0.9]",
            "optimizer.clip_norm=null",
            "augmentation.flip=false",
            "loss={reconstruction: l1}",
            " schedule.kind = constant",
        ],
    )
    assert recipe.training.steps == 30
    assert recipe.optimizer.learning_rate == 1e-3
    assert recipe.optimizer.betas == (0.8, 0.9)
    assert recipe.optimizer.clip_norm is None
    assert recipe.augmentation.flip is False
    assert recipe.loss.reconstruction == "l1"
    assert recipe.schedule.kind == "constant"
    assert recipe.training.global_batch_size == 4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.steps", "is not of the form field.name=value"),
        ("=3", "is not of the form field.name=value"),
        ("training..steps=3", "is not of the form field.name=value"),
        ("training.steps=[1", "cannot read the value '[1'"),
        ("stage.name=3", "stage is a value, not a section"),
        ("training.step=3", "training.step: unknown field; did you mean steps?"),
        ("trainig.steps=3", "trainig: unknown field; did you mean training?"),
        ("training.steps=many", 'training.steps: should be a valid integer, not "many"'),
    ],
)
def test_a_wrong_override_is_reported(write, override, message):
    assert message in problem(write(), override)


def test_an_override_can_open_a_section():
    data: dict = {}
    apply_override(data, "a.b.c=[1, x]")
    assert data == {"a": {"b": {"c": [1, "x"]}}}


def test_names_find_recipes_and_near_misses_are_guessed():
    folder = recipes_folder()
    assert find("tokenizer/tiny") == folder / "tokenizer" / "tiny.yaml"
    assert find("tiny", "generator") == folder / "generator" / "tiny.yaml"
    with pytest.raises(UsageError, match="ambiguous") as caught:
        find("tiny")
    assert "generator/tiny, tokenizer/tiny" in caught.value.hint
    with pytest.raises(UsageError, match="no recipe named 'tinny'") as caught:
        find("tinny")
    assert caught.value.hint.count("tiny") == len({word for word in caught.value.hint.split() if "tiny" in word})
    with pytest.raises(UsageError) as caught:
        find("quite-another", "tokenizer")
    assert "shipped: " in caught.value.hint


def test_differences_are_named_by_field(write):
    old = load(write(), "tokenizer").model_dump(mode="json")
    new = load(write(), "tokenizer", ["training.steps=11", "optimizer.clip_norm=null"]).model_dump(mode="json")
    assert flat_differences(old, new) == ["optimizer.clip_norm: 1.0 -> None", "training.steps: 10 -> 11"]


def test_there_are_recipes_of_every_kind():
    assert {name.split("/")[0] for name in shipped()} == {"tokenizer", "generator", "sampling"}


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_recipe_is_whole(name, tmp_path):
    path = find(name)
    recipe = check(path)
    again = tmp_path / "again.yaml"
    again.write_text(recipe_files.to_yaml(recipe), encoding="utf-8")
    assert check(again) == recipe
    assert path.read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize("name", [name for name in shipped() if name.startswith("generator/")])
def test_every_shipped_generator_can_be_built(name):
    from titokctl.models.generator_kinds import build

    with torch.device("meta"):
        parameters = list(build(load(name, "generator").model).parameters())
    assert parameters
    assert all(p.is_meta for p in parameters)


def test_reading_a_recipe_needs_no_order_of_keys(write):
    first = read_mapping(Path(write()))
    assert list(first) == ["kind", "stage", "model", "optimizer", "schedule", "training"]


def test_what_the_command_line_got_wrong_is_not_blamed_on_the_recipe():
    with pytest.raises(UsageError, match="what the command line changes in ") as caught:
        load("tiny", "generator", ["training.step=4"])
    assert "training.step: unknown field; did you mean steps?" in caught.value.message
    assert "`titokctl recipes show NAME` lists the fields" in caught.value.hint
