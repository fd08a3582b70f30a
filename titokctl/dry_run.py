"""Dry runs: everything is checked, nothing is written, and the plan is shown.

Jobs call `about_to_write` between the two, so bad input is refused by the same code in the same words.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_is_dry = False


@dataclass(frozen=True)
class WritePlan:
    """What a command is about to write.

    Args:
        reads: what goes into it, by name; JSON values.
        output: the file or folder.
        count, unit: how many images or rows it will hold; `done` of them are kept from an earlier run.
        num_bytes: about how large it becomes; None where that depends on what the images look like.
        settings: what else decides about it, by name; JSON values.
        replaces: whether something finished at `output` goes.
        makes_folders: whether the folder of `output` is made where it is missing.
    """

    reads: dict[str, Any]
    output: Path
    count: int
    unit: str = "images"
    done: int = 0
    num_bytes: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    replaces: bool = False
    makes_folders: bool = True


class Planned(Exception):
    """The end of a dry run, with what would have been done."""

    def __init__(self, plan: WritePlan) -> None:
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


def about_to_write(plan: Callable[[], WritePlan]) -> None:
    """Everything is checked and nothing is written: a dry run ends here. `plan` is called in a dry run only.

    Raises Planned, in a dry run.
    """
    if is_dry_run():
        raise Planned(plan())
