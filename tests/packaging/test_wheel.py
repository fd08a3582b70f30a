"""The package as it is published: a source archive, the wheel that is built from it, and that wheel somewhere else."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from command_line import PATIENCE_S

import titokctl
from titokctl.config.recipe_files import recipes_folder, shipped

ROOT = Path(titokctl.__file__).resolve().parents[1]
OFFLINE = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]


def python(*words: object, cwd: Path, **changes: str) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd, env={**os.environ, **changes}, capture_output=True, text=True, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    python("-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=ROOT)
    [archive] = folder.glob("titokctl-*.tar.gz")
    python("-m", "pip", "wheel", *OFFLINE, "-w", folder, archive, cwd=folder)
    [built] = folder.glob("titokctl-*.whl")
    return built


def test_recipes_and_types_are_inside(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    folder = recipes_folder()
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    scripts = {name for name in files if name.endswith(".py")}  # for a checkout
    assert {f"titokctl/recipes/{name}" for name in files - scripts} <= names
    assert not {f"titokctl/recipes/{name}" for name in scripts} & names
    assert {"titokctl/py.typed", "titokctl/cli/app.py"} <= names
    assert not any(name.startswith(("tests", "docs", "benchmarks", "examples")) for name in names)


def test_it_works_from_another_folder(wheel, tmp_path):
    target, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    python("-m", "pip", "install", *OFFLINE, "--target", target, wheel, cwd=elsewhere)

    def does(*words: str) -> str:
        return python(target / "bin" / "titokctl", *words, cwd=elsewhere, PYTHONPATH=str(target))

    listed = does("recipes", "ls")
    assert all(name in listed for name in shipped())
    assert does("recipes", "show", "tokenizer/tiny") == (recipes_folder() / "tokenizer" / "tiny.yaml").read_text()
    assert does("--version") == f"titokctl {titokctl.__version__}\n", "no checkout, no commit"
