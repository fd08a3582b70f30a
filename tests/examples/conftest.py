"""The example packages, installed as a user would."""

import subprocess
import sys
from pathlib import Path

import pytest
from command_line import PATIENCE_S


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A folder that holds the installed package of the test module's EXAMPLE."""
    target = tmp_path_factory.mktemp("installed")
    offline = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *offline, "--target", str(target), str(request.module.EXAMPLE)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    return target
