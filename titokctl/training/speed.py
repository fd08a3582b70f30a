"""Training speed: images a second, the share of time spent waiting for data, and the share of the device's peak."""

import functools
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from titokctl.models.precision import Precision, low_dtype

_SIDE, _WARM_SECONDS, _PRODUCTS = 8192, 0.3, 10  # a GPU at rest needs a while to raise its clocks
_RUSAGE_UNIT = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True)
class Cost:
    """Cost of training on one image, in operations, and the peak of one device, in operations a second."""

    operations_per_image: float
    peak: float


@dataclass(frozen=True)
class Speed:
    """One stretch of training.

    `utilization` is the share of the devices' peak (MFU), None when that is unknown; `memory_gb` the most that was held
    so far, on a GPU by tensors, else by the process.
    """

    images_per_s: float
    devices: int
    data_wait: float
    utilization: float | None
    memory_gb: float

    def values(self) -> dict[str, float]:
        """For the log."""
        found = {"images_per_s": self.images_per_s, "images_per_s_per_device": self.images_per_s / self.devices}
        found |= {"data_wait": self.data_wait, "memory_gb": self.memory_gb}
        return found | ({"mfu": self.utilization} if self.utilization is not None else {})

    def shown(self) -> list[str]:
        """For the progress line, which has images a second already."""
        words = [f"data wait {self.data_wait:.1%}"]
        if self.utilization is not None:
            words.append(f"MFU {self.utilization:.0%}")
        return [*words, f"memory {self.memory_gb:.1f} GB"]


class Recent:
    """Times since they were last taken."""

    def __init__(self) -> None:
        self._clear()

    def add(self, waited: float, worked: float) -> None:
        """One step: seconds for its data, and for the rest."""
        self._steps += 1
        self._waited += waited
        self._seconds += waited + worked

    def add_waiting_for_device(self, seconds: float) -> None:
        """Time in which the device finished steps that were counted when they were handed to it."""
        self._seconds += seconds

    def take(self, global_batch: int, devices: int, cost: Cost | None) -> Speed:
        """The speed of the steps since the last time."""
        rate = self._steps * global_batch / self._seconds
        share = rate * cost.operations_per_image / (cost.peak * devices) if cost else None
        speed = Speed(rate, devices, self._waited / self._seconds, share, _most_memory() / 1e9)
        self._clear()
        return speed

    def _clear(self) -> None:
        self._steps, self._waited, self._seconds = 0, 0.0, 1e-9


def _most_memory() -> int:
    """Bytes."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RUSAGE_UNIT


def training_cost(
    operations_per_image: Callable[[], float], device: torch.device | str, precision: Precision
) -> Cost | None:
    """Return the cost of one image, with the peak measured on a GPU.

    None on a CPU, whose peak nobody compares with and would cost seconds to measure.
    """
    if torch.device(device).type != "cuda":
        return None
    return Cost(operations_per_image(), matrix_peak(device, low_dtype(precision) or torch.float32))


@functools.cache
def matrix_peak(device: torch.device | str, dtype: torch.dtype) -> float:
    """Measure the operations a second of large products of random matrices on a GPU; takes half a second.

    A process measures it once; it does not change from run to run.

    Products of ones would be faster than those of real data, since a chip that toggles fewer bits keeps higher clocks.
    """
    a, b = (torch.randn(_SIDE, _SIDE, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)

    def seconds(count: int) -> float:
        torch.cuda.synchronize(device)
        began = time.perf_counter()
        for _ in range(count):
            torch.mm(a, b, out=out)
        torch.cuda.synchronize(device)
        return time.perf_counter() - began

    until = time.perf_counter() + _WARM_SECONDS
    while time.perf_counter() < until:
        seconds(1)
    return _PRODUCTS * 2 * _SIDE**3 / seconds(_PRODUCTS)
