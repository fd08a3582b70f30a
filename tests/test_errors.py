"""Errors that are shown to the user."""

import shlex
import shutil
import tomllib

from command_line import ROOT

from titokctl.errors import EXTRAS, Stopped, UsageError, UserError, install


def test_a_user_error_has_a_hint():
    error = UserError("the disk is full", "free some space")
    assert str(error) == "the disk is full\nhint: free some space"
    assert str(UserError("the disk is full")) == "the disk is full"
    assert error.exit_code == 1


def test_a_usage_error_is_a_user_error_with_its_own_code():
    error = UsageError("no such recipe")
    assert isinstance(error, UserError)
    assert error.exit_code == 2


def test_stopped_is_not_a_user_error():
    stopped = Stopped(75, "step 3 is saved")
    assert not isinstance(stopped, UserError)
    assert (stopped.exit_code, stopped.message) == (75, "step 3 is saved")


def test_hints_install_the_packages_of_the_extras():
    """titokctl is not on an index, so hints name the packages; the names are those of pyproject.toml."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {name: list(packages) for name, packages in EXTRAS.items()} == {
        name: packages for name, packages in declared.items() if name != "dev"
    }
    words = shlex.split(install("ray"))
    assert words[-2:] == ["install", "ray[data]>=2.40"]
    assert shutil.which(words[0])
