"""Processes of a group that share the work of one command: the first one leads, each takes the next piece when free.

No process is idle while there is work, however long a piece takes; nothing is padded or done twice; and signals are
handled while waiting.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from titokctl.distributed.group import Group
from titokctl.errors import UserError
from titokctl.progress import Progress


class Team:
    """The processes of a group that work on one command.

    Args:
        group: the processes, which make their teams in the same order.
        command: its name.
        progress: where the first process shows how many images all of them have done.
        check: called while waiting; may raise to end the wait, as `StopRequest.check` does.
    """

    def __init__(self, group: Group, command: str, progress: Progress, check: Callable[[], None]) -> None:
        self.group, self._progress, self._check = group, progress, check
        self._store, self._shown = group.shared_store(f"{command}/{group.next_use()}"), 0

    def set(self, name: str, value: Any) -> None:
        """Set `name` to a JSON value, for all processes."""
        self._store.set(f"value/{name}", json.dumps(value))

    def get(self, name: str) -> Any:
        """Return the value of `name`; waits until a process has set it."""
        key = f"value/{name}"
        self.group.wait_until(lambda: self._store.check([key]), self._check)
        return json.loads(self._store.get(key))

    def begin(self, identity: Any, todo: list[int]) -> None:
        """Distribute the numbers of the pieces to be done; called by the first process.

        `identity` is a JSON value of all that must be the same in every process.
        """
        self.set("begin", [json.dumps(identity, sort_keys=True), todo])

    def join(self, identity: Any, seen: str, folder: Path | None = None) -> list[int]:
        """Return the numbers of the pieces, once the first process has distributed them; called by the others.

        Raises UserError when `identity` differs from that of the first process, or `folder`, which is to be worked in,
        is missing; `seen` says in words what differs.
        """
        theirs, todo = self.get("begin")
        if theirs != json.dumps(identity, sort_keys=True) or (todo and folder and not folder.is_dir()):
            raise UserError(
                f"process {self.group.rank} sees {seen} than process 0",
                "every machine must see the same files and run the same installation",
            )
        return todo

    def pieces(self, todo: list[int]) -> Iterator[int]:
        """Yield numbers from `todo`, in order, each to the one process that asks first."""
        while (position := self._store.add("taken", 1) - 1) < len(todo):
            yield todo[position]

    def advance(self, images: int = 0) -> None:
        """Count `images` that this process has done."""
        total = self._store.add("images", images)
        if self.group.is_main:
            self._progress.advance(total - self._shown)
            self._shown = total

    @property
    def images(self) -> int:
        """The number of images that all processes have done."""
        return self._store.add("images", 0)

    def finish(self) -> None:
        """End this process's share; the first process waits for the others."""
        self._store.add("finished", 1)
        if self.group.is_main:
            self.group.wait_until(lambda: self._store.add("finished", 0) == self.group.world_size, self._wait)
            self.advance()

    def _wait(self) -> None:
        self._check()
        self.advance()
