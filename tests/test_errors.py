"""Errors that are shown to the user."""

from titokctl.errors import Stopped, UsageError, UserError


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
