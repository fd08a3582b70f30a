"""The next batch is made ready while the current one is used."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """Computes `make(step + 1)` in a thread once `step` was asked for.

    `make` is never called twice at once; asking out of order is allowed and merely waits.
    """

    def __init__(self, make: Callable[[int], T]) -> None:
        self._make = make
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._ahead: tuple[int, Future[T]] | None = None

    def get(self, step: int) -> T:
        """The batch of `step`; errors of `make` are raised here."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == step:
            value = ahead[1].result()
        else:
            if ahead is not None and not ahead[1].cancel():
                ahead[1].exception()  # until it is done; nobody wants to know of what
            value = self._make(step)
        self._ahead = (step + 1, self._pool.submit(self._make, step + 1))
        return value
