"""Dry runs: everything is checked, nothing is written, and the plan is shown.

Jobs call `about_to_write` between the two, so bad input is refused by the same code in the same words.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

_is_dry = False


class Planned(Exception):
    """The end of a dry run, with what would have been done."""

    def __init__(self, plan: Any) -> None:
        super().__init__(f"dry run: {plan.output} was not written")
        self.plan = plan


@contextlib.contextmanager
def dry_run() -> Iterator[None]:
    """Let jobs end with `Planned` before they write, and nothing be fetched or kept for later on the way."""
    global _is_dry  # a process works at one command, and threads of its own must know too
    _is_dry = True
    try:
        yield
    finally:
        _is_dry = False


def is_dry_run() -> bool:
    """Whether nothing may be written."""
    return _is_dry


def about_to_write(plan: Callable[[], Any]) -> None:
    """Everything is checked and nothing is written: a dry run ends here. `plan` is called in a dry run only.

    Raises Planned, in a dry run.
    """
    if is_dry_run():
        raise Planned(plan())
