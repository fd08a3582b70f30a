"""Work for the processes of one group: each number is given to exactly one of them, in order, when it asks.

Nobody is idle while there is work, whatever takes how long, and nothing is padded or done twice. All that is needed is
a store with an atomic counter, as every process group of torch has one.
"""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

_LOOK_EVERY_S = 0.1


class Store(Protocol):
    """What is used of a `torch.distributed.Store`."""

    def add(self, key: str, amount: int, /) -> int:
        """Add to a counter that starts at 0; returns its new value."""

    def set(self, key: str, value: str, /) -> None:
        """Set a value."""

    def get(self, key: str, /) -> bytes:
        """The value of a key, waiting for it."""

    def check(self, keys: list[str], /) -> bool:
        """True when all keys are there."""


class WorkQueue:
    """Numbers 0 to `count` - 1, shared by all processes that name the same store and queue."""

    def __init__(self, store: Store, name: str, count: int) -> None:
        self._store, self._key, self._count = store, f"titokctl/queue/{name}", count

    def __iter__(self) -> Iterator[int]:
        while (number := self._store.add(self._key, 1) - 1) < self._count:
            yield number


class Board:
    """Values and counters that the processes of a group tell each other.

    Args:
        store: of the group.
        name: of the job, so that several jobs of one group don't mix.
        check: called while waiting; raises to end it (a `StopRequest.check`).
    """

    def __init__(self, store: Store, name: str, check: Callable[[], None]) -> None:
        self._store, self._name, self._check = store, f"titokctl/board/{name}", check

    def tell(self, what: str, value: Any) -> None:
        """Set `what` to a JSON value, once."""
        self._store.set(f"{self._name}/{what}", json.dumps(value))

    def hear(self, what: str) -> Any:
        """The value of `what`, waiting until someone tells it."""
        key = f"{self._name}/{what}"
        while not self._store.check([key]):
            self._check()
            time.sleep(_LOOK_EVERY_S)
        return json.loads(self._store.get(key))

    def count(self, what: str, amount: int = 0) -> int:
        """Add `amount` to the counter `what`; returns its value."""
        return self._store.add(f"{self._name}/{what}", amount)

    def wait_for(self, what: str, least: int, meanwhile: Callable[[], None]) -> None:
        """Wait until the counter `what` has reached `least`, calling `meanwhile` again and again."""
        while self.count(what) < least:
            self._check()
            meanwhile()
            time.sleep(_LOOK_EVERY_S)
