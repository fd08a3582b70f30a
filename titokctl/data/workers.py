"""Work done by several threads, handed over in order.

Threads serve for a few images: Pillow and NumPy let go of Python's lock while they compute. For many, each thread hands
its files to a process (`decode_processes`).
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def available_cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(make: Callable[[T], R], tasks: Iterable[T], workers: int, ahead: int = 64) -> Iterator[tuple[T, R]]:
    """(task, make(task)) for every task, in order, by `workers` threads at most `ahead` tasks ahead of the caller."""
    if workers <= 1:
        yield from ((task, make(task)) for task in tasks)
        return
    remaining = iter(tasks)
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
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
