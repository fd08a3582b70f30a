"""How the processes of a group share the work of one command: the first one leads, each takes the next piece when free.

Nobody is idle while there is work, whatever takes how long, nothing is padded or done twice, and no wait is deaf to a
signal.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from titokctl.distributed.group import Group
from titokctl.errors import UserError
from titokctl.progress import Progress


class Team:
    """The processes of a group at one command.

    Args:
        group: the processes, which make their teams in the same order.
        command: its name.
        progress: where the first process shows how many images all of them have done.
        check: called while waiting; raises to end it (a `StopRequest.check`).
    """

    def __init__(self, group: Group, command: str, progress: Progress, check: Callable[[], None]) -> None:
        self.group, self._progress, self._check = group, progress, check
        self._store, self._shown = group.shared_store(f"{command}/{group.next_use()}"), 0

    def tell(self, what: str, value: Any) -> None:
        """Set `what` to a JSON value."""
        self._store.set(f"value/{what}", json.dumps(value))

    def hear(self, what: str) -> Any:
        """The value of `what`, waiting until someone tells it."""
        key = f"value/{what}"
        self.group.wait_until(lambda: self._store.check([key]), self._check)
        return json.loads(self._store.get(key))

    def begin(self, identity: Any, todo: list[int]) -> None:
        """In the first process: tell the others which pieces are to be done.

        `identity` is JSON for all that must be the same in every process.
        """
        self.tell("begin", [json.dumps(identity, sort_keys=True), todo])

    def join(self, identity: Any, seen: str, folder: Path | None = None) -> list[int]:
        """In the others: the pieces, once the first process tells.

        Raises UserError when `identity` is not that of the first process, or `folder`, which is to be worked in, is not
        there; `seen` says in words what it is that differs.
        """
        theirs, todo = self.hear("begin")
        if theirs != json.dumps(identity, sort_keys=True) or (todo and folder and not folder.is_dir()):
            raise UserError(
                f"process {self.group.rank} sees {seen} than process 0",
                "every machine must see the same files and run the same installation",
            )
        return todo

    def pieces(self, todo: list[int]) -> Iterator[int]:
        """Those of `todo`, in order, that no other process has taken when this one asks."""
        while (place := self._store.add("taken", 1) - 1) < len(todo):
            yield todo[place]

    def advance(self, images: int = 0) -> None:
        """`images` more are done here."""
        total = self._store.add("images", images)
        if self.group.is_main:
            self._progress.advance(total - self._shown)
            self._shown = total

    @property
    def images(self) -> int:
        """How many images all processes have done."""
        return self._store.add("images", 0)

    def finish(self) -> None:
        """This process's share is done; the first one waits for the others."""
        self._store.add("finished", 1)
        if self.group.is_main:
            self.group.wait_until(lambda: self._store.add("finished", 0) == self.group.world_size, self._look)
            self.advance()

    def _look(self) -> None:
        self._check()
        self.advance()
