"""`titokctl recipes`."""

import pytest

from titokctl.config.recipe_files import recipes_folder, shipped

TINY = recipes_folder() / "tokenizer" / "tiny.yaml"


def test_ls_shows_every_recipe(run_cli):
    out = run_cli("recipes", "ls", code=0).stdout
    for name in shipped():
        assert name in out


def test_ls_as_json(run_cli):
    recipes = run_cli("recipes", "ls", "--json", code=0).json
    assert [r["name"] for r in recipes] == shipped()
    for recipe in recipes:
        assert recipe["kind"] == recipe["name"].split("/")[0]
        assert recipe["about"]
        assert not recipe["about"].startswith("#")


def test_show_prints_the_file_as_it_is(run_cli):
    assert run_cli("recipes", "show", "tokenizer/tiny", code=0).stdout == TINY.read_text(encoding="utf-8")
    assert "ambiguous" in run_cli("recipes", "show", "tiny", code=2).stderr


def test_cp_makes_a_copy_that_is_valid(run_cli, tmp_path):
    result = run_cli("recipes", "cp", "tokenizer/tiny", "my.yaml", code=0)
    assert result.stdout == ""
    assert "my.yaml" in result.stderr
    assert (tmp_path / "my.yaml").read_bytes() == TINY.read_bytes()
    again = run_cli("recipes", "cp", "tokenizer/tiny", "my.yaml", code=0)
    assert "my.yaml is finished already" in again.stderr
    assert "my.yaml is valid" in run_cli("recipes", "check", "my.yaml", code=0).stderr


def test_cp_into_a_folder(run_cli, tmp_path):
    assert run_cli("recipes", "cp", "tokenizer/tiny", ".", "--quiet", code=0).stderr == ""
    assert (tmp_path / "tiny.yaml").read_bytes() == TINY.read_bytes()


def test_cp_does_not_replace_unless_asked(run_cli, tmp_path):
    target = tmp_path / "my.yaml"
    target.write_text("mine")
    result = run_cli("recipes", "cp", "tokenizer/tiny", "my.yaml", code=1)
    assert "my.yaml exists already and is not a copy of tokenizer/tiny" in result.stderr
    assert "--overwrite" in result.stderr
    assert target.read_text() == "mine"
    run_cli("recipes", "cp", "tokenizer/tiny", "my.yaml", "--overwrite", code=0)
    assert target.read_bytes() == TINY.read_bytes()


def test_cp_names_a_missing_folder(run_cli, tmp_path):
    result = run_cli("recipes", "cp", "tokenizer/tiny", "no/where/my.yaml", code=2)
    assert "does not exist" in result.stderr
    assert "hint: make it first: mkdir -p no/where" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def files(tmp_path):
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_bytes(TINY.read_bytes())
    bad.write_text(TINY.read_text().replace("stage: single", "stage: twice").replace("optimizer:", "optimiser:"))
    return good, bad


def test_check_names_every_problem_of_every_file(run_cli, files):
    result = run_cli("recipes", "check", *files, code=1)
    assert result.stdout == ""
    assert "good.yaml is valid" in result.stderr
    assert "bad.yaml has 3 problems:" in result.stderr
    assert "stage: should be one of single, vqgan" in result.stderr
    assert "optimiser: unknown field; did you mean optimizer?" in result.stderr
    assert "optimizer: missing" in result.stderr


def test_check_as_json(run_cli, files):
    good, bad = run_cli("recipes", "check", *files, "--json", code=1).json
    assert good["valid"]
    assert good["problem"] == ""
    assert not bad["valid"]
    assert bad["path"] == str(files[1])
    assert "3 problems" in bad["problem"]


def test_check_quietly(run_cli, files):
    good, bad = files
    assert run_cli("recipes", "check", good, "-q", code=0).stderr == ""
    assert "3 problems" in run_cli("recipes", "check", bad, "-q", code=1).stderr


def test_check_wants_files(run_cli, files):
    result = run_cli("recipes", "check", files[0], "nothing.yaml", code=2)
    assert "recipe file not found: nothing.yaml" in result.stderr
    assert "is valid" not in result.stderr


def test_every_shipped_recipe_passes_its_check(run_cli):
    run_cli("recipes", "check", *(recipes_folder() / f"{name}.yaml" for name in shipped()), code=0)
