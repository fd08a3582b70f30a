"""`--engine ray` where Ray is missing, and options of the engines that exclude each other."""

import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from command_line import PATIENCE_S, CliResult

from titokctl.cli.app import run

WITHOUT_RAY = "import sys; sys.modules['ray'] = None; from titokctl.cli.app import run; sys.exit(run(sys.argv[1:]))"
SEEN = "import sys; from titokctl.cli.app import run; run(sys.argv[1:]); print('ray' in sys.modules, file=sys.stderr)"


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    tiny.tokenizer(tmp_path / "tokenizer.safetensors")
    tiny.class_folder(tmp_path / "images", 2)
    weights = ["--tokenizer", str(tmp_path / "tokenizer.safetensors")]
    return ["tokenize", str(tmp_path / "images"), "-o", str(tmp_path / "tokens.h5"), *weights]


def ran(interpreter: str, code: str, words: list[str]) -> CliResult:
    done = subprocess.run([interpreter, "-c", code, *words], capture_output=True, text=True, timeout=PATIENCE_S)
    return CliResult(done.returncode, done.stdout, done.stderr)


def test_without_ray_the_engine_says_what_to_install(python: str, words: list[str]) -> None:
    done = ran(python, WITHOUT_RAY, [*words, "--engine", "ray"])
    assert done.code == 1
    assert "Ray is not installed" in done.stderr
    assert "install 'ray[data]>=2.40'" in done.stderr


def test_other_engines_never_import_ray(words: list[str]) -> None:
    assert ran(sys.executable, SEEN, words).stderr.splitlines()[-1] == "False"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine", "ray", "--procs", "2"], "--procs and --engine ray are mutually exclusive"),
        (["--engine", "ray", "--gpus", "all"], "--gpus and --engine ray are mutually exclusive"),
        (["--engine", "ray", "--nodes", "2"], "--nodes and --engine ray are mutually exclusive"),
        (["--engine", "ray", "--part", "1/2"], "--part and --engine ray are mutually exclusive"),
        (["--engine", "ray", "--device", "cuda:1"], "Ray assigns GPUs"),
        (["--engine", "ray", "--min-workers", "3", "--max-workers", "2"], "--max-workers 2 is less than"),
        (["--engine", "ray", "--min-workers", "0"], "--min-workers must be at least 1"),
        (["--max-workers", "2"], "--max-workers is for --engine ray"),
        (["--engine", "torchrun", "--address", "auto"], "--address is for --engine ray"),
    ],
)
def test_options_that_exclude_each_other_are_refused(words: list[str], options, message, capsys) -> None:
    assert run([*words, *options]) == 2
    assert message in capsys.readouterr().err
