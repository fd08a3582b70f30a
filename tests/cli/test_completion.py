"""Shell completion of commands, options, and the names of recipes, released models and runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from trained import both

import titokctl
from titokctl.config.recipe_names import shipped
from titokctl.weights.known import of_kind

ROOT = Path(titokctl.__file__).resolve().parents[1]
ASKED = (
    "import sys; from titokctl.cli.app import run; code = run([]);"
    "heavy = {'torch', 'numpy', 'h5py', 'yaml'} & sys.modules.keys(); assert not heavy, heavy; sys.exit(code)"
)


@pytest.fixture
def offered(tmp_path):
    """Return the completions that bash gets for Tab at the end of the line."""
    both(tmp_path / "runs")

    def call(line: str) -> list[str]:
        words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1), "_TITOKCTL_COMPLETE": "complete_bash"}
        done = subprocess.run(
            [sys.executable, "-c", ASKED],
            cwd=tmp_path, env={**os.environ, **words, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.split()

    return call


def test_commands_and_options(offered):
    assert offered("titokctl train-") == ["train-tokenizer", "train-gen"]
    assert offered("titokctl tokenize pictures --max-p") == ["--max-pixels"]


def test_recipes(offered):
    assert offered("titokctl recipes show ") == shipped()
    assert offered("titokctl train-gen t.h5 --recipe maskgit-vit-l-6") == ["maskgit-vit-l-64-512"]
    assert "tiny" in offered("titokctl train-tokenizer pictures --recipe ")


def test_models_and_runs(offered):
    released = [known.name for known in of_kind("tokenizer")]
    assert offered("titokctl sample --tokenizer ") == ["runs/tokenizer/tok", *released]
    assert offered("titokctl sample --generator ru") == ["runs/generator/gen"]
    assert offered("titokctl sample --tokenizer to") == ["tok"]
    assert offered("titokctl runs show --runs-dir runs ge") == ["generator/gen", "gen"]
    assert offered("titokctl runs show --runs-dir elsewhere ge") == []
