"""Work for the processes of one group: each number is given to exactly one of them, in order, when it asks.

Nobody is idle while there is work, whatever takes how long, and nothing is padded or done twice.
"""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch.distributed as dist

_LOOK_EVERY_S = 0.1


class WorkQueue:
    """Numbers 0 to `count` - 1, shared by all processes that give the same store."""

    def __init__(self, store: dist.Store, count: int) -> None:
        self._store, self._count = store, count

    def __iter__(self) -> Iterator[int]:
        while (number := self._store.add("queue", 1) - 1) < self._count:
            yield number


class Board:
    """Values and counters that the processes of a group tell each other, without ever waiting deaf to a signal.

    Args:
        store: shared by the processes, for this board alone.
        check: called while waiting; raises to end it (a `StopRequest.check`).
    """

    def __init__(self, store: dist.Store, check: Callable[[], None]) -> None:
        self._store, self._check = store, check

    def tell(self, what: str, value: Any) -> None:
        """Set `what` to a JSON value."""
        self._store.set(f"value/{what}", json.dumps(value))

    def hear(self, what: str) -> Any:
        """The value of `what`, waiting until someone tells it."""
        while not self._store.check([f"value/{what}"]):
            self._check()
            time.sleep(_LOOK_EVERY_S)
        return json.loads(self._store.get(f"value/{what}"))

    def count(self, what: str, amount: int = 0) -> int:
        """Add `amount` to the counter `what`, which starts at 0; returns its value."""
        return self._store.add(f"count/{what}", amount)

    def wait_for(self, what: str, least: int, meanwhile: Callable[[], None]) -> None:
        """Wait until the counter `what` has reached `least`, calling `meanwhile` again and again."""
        while self.count(what) < least:
            self._check()
            meanwhile()
            time.sleep(_LOOK_EVERY_S)
