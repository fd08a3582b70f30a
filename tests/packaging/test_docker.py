"""The Dockerfile does what the build machine and the Makefile do; no container is built here."""

import re
import subprocess
import tomllib
from fnmatch import fnmatch
from pathlib import Path

from command_line import ROOT

LINES = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
MAKE = re.compile(r"\bmake((?: [\w./-]+)+)")


def commands() -> list[str]:
    """Return the commands that the image runs when it is built, and those of its comments, which people run."""
    built = [line.removeprefix("RUN ") for line in LINES if line.startswith("RUN ")]
    shown = [line.removeprefix("#").strip() for line in LINES if line.startswith("#   docker ")]
    return built + shown


def test_it_runs_what_the_build_machine_runs():
    steps = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if re.match(r"rm|make", line)]
    assert steps == ["rm -rf .venv", "make test"]
    for step in steps:
        assert [line for line in commands() if line.endswith(step)], step


def test_its_targets_are_those_of_the_makefile():
    wanted = [word for line in commands() for found in MAKE.findall(line) for word in found.split()]
    targets = [word for word in wanted if word not in ("git", "gcc", "libc6-dev")]
    assert ".venv/.installed-dev" in targets
    for target in targets:
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def test_its_python_is_one_that_is_supported():
    (image,) = (line.split()[1] for line in LINES if line.startswith("FROM "))
    least = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    found = re.fullmatch(r"python:3\.(\d+)-slim-bookworm", image)
    assert found is not None
    assert int(found[1]) >= int(least.rpartition(".")[2])


def test_nothing_that_belongs_to_the_checkout_is_left_out():
    """The image holds every tracked file: what .dockerignore names is made by commands."""
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    patterns = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert patterns
    for name in filter(None, tracked.split("\0")):
        folders = [part.as_posix() for part in (Path(name), *Path(name).parents)]
        for pattern in patterns:
            anywhere = pattern.startswith("**/")
            parts = [Path(folder).name for folder in folders] if anywhere else folders
            assert not any(fnmatch(part, pattern.removeprefix("**/")) for part in parts), f"{pattern} leaves out {name}"
