"""The next batch is made ready while the current one is used."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """Computes `make(step + 1)` in a thread once `step` was asked for.

    `make` must depend on its argument alone; asking out of order is allowed and merely waits.
    """

    def __init__(self, make: Callable[[int], T]) -> None:
        self._make = make
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._ahead: tuple[int, Future[T]] | None = None

    def get(self, step: int) -> T:
        """The batch of `step`; errors of `make` are raised here."""
        ahead, self._ahead = self._ahead, None
        value = ahead[1].result() if ahead is not None and ahead[0] == step else self._make(step)
        self._ahead = (step + 1, self._pool.submit(self._make, step + 1))
        return value
