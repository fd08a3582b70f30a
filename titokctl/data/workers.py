"""Threads that work ahead of their caller: `in_order` maps tasks in order, `Prefetch` makes the next batch.

Threads are enough for a few images, since Pillow and NumPy release Python's lock while they compute. For many images
each thread hands its files to a process (`DecodeProcesses`).
"""

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Generic, TypeVar

from titokctl.errors import UserError

T = TypeVar("T")
R = TypeVar("R")


def in_order(make: Callable[[T], R], tasks: Iterable[T], workers: int, ahead: int = 64) -> Iterator[tuple[T, R]]:
    """Yield (task, make(task)) for every task, in order.

    Args:
        make: called by `workers` threads, or by the caller's thread if `workers` is 1.
        ahead: how many tasks the threads may be ahead of the caller.
    """
    if workers <= 1:
        yield from ((task, make(task)) for task in tasks)
        return
    remaining = iter(tasks)
    with no_more_threads(), ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        waiting = deque((task, pool.submit(make, task)) for task in islice(remaining, ahead))
        try:
            while waiting:
                task, future = waiting.popleft()
                result = future.result()
                waiting.extend((task, pool.submit(make, task)) for task in islice(remaining, 1))
                yield task, result
        finally:
            for _, future in waiting:
                future.cancel()


@contextlib.contextmanager
def no_more_threads() -> Iterator[None]:
    """Raise UserError when the system starts no more threads."""
    try:
        yield
    except RuntimeError as error:
        if "new thread" not in str(error):
            raise
        raise UserError(
            "the system can't start more threads for this user", "use fewer with --workers 1, or raise `ulimit -u`"
        ) from error


class Prefetch(Generic[T]):
    """Computes `make(step + 1)` in a thread as soon as `step` is requested.

    `make` never runs twice at once. Steps may be requested in any order, but only the next one is ready.
    """

    def __init__(self, make: Callable[[int], T]) -> None:
        self._make = make
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._ahead: tuple[int, Future[T]] | None = None

    def get(self, step: int) -> T:
        """Return the batch of `step`. Raises what `make` raises for it."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == step:
            value = ahead[1].result()
        else:
            if ahead is not None and not ahead[1].cancel():
                ahead[1].exception()  # wait for it; an error in a batch that was not requested doesn't matter
            value = self._make(step)
        with no_more_threads():
            self._ahead = (step + 1, self._pool.submit(self._make, step + 1))
        return value
