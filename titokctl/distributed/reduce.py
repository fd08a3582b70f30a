"""Sums and agreements over the processes of a group. With one process, each leaves its input unchanged, bit for bit."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import torch
import torch.distributed as dist
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from titokctl.distributed.group import Group
from titokctl.distributed.stop import StopRequest

_BUCKET_BYTES = (1 << 20, 25 << 20)  # least and most; in between, an eighth of all gradients
_BUCKETS = 8


class GradientSums:
    """Replaces gradients by their sums over all processes, while the backward pass that makes them still runs.

    Gradients are sent in buckets: those of the last parameters first, since a backward pass begins with them, and in
    the same order on every process. A missing gradient must be missing in every process, as it is when all run the
    same code.

    Args:
        parameters: in the order in which the forward pass uses them, as far as possible.
        group: the processes.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], group: Group) -> None:
        self._buckets = [] if group.is_single else list(_buckets(list(parameters)[::-1]))
        self._missing = [len(bucket) for bucket in self._buckets]
        self._is_last, self._next = False, 0
        self._sent: list[tuple[dist.Work, torch.Tensor, list[torch.nn.Parameter]]] = []
        for number, bucket in enumerate(self._buckets):
            for parameter in bucket:
                parameter.register_post_accumulate_grad_hook(partial(self._arrived, number))

    def backward(self, loss: torch.Tensor, is_last: bool) -> None:
        """Add the gradients of a scalar loss to those of this process.

        Args:
            is_last: whether these are the last gradients before `finish`: only then they are sent.
        """
        self._missing = [len(bucket) for bucket in self._buckets]
        self._is_last = is_last
        loss.backward()
        self._is_last = False

    @torch.no_grad()
    def finish(self) -> None:
        """Send what has not been sent, and wait: then every gradient is the sum over all processes.

        Afterwards each gradient is a contiguous view of its bucket; set it to None before the next backward pass.
        """
        while self._next < len(self._buckets):
            self._send()
        for work, flat, parameters in self._sent:
            work.wait()
            for parameter, total in zip(parameters, _unflatten_dense_tensors(flat, parameters), strict=True):
                parameter.grad = total
        self._next = 0
        self._sent.clear()

    def _arrived(self, number: int, parameter: torch.nn.Parameter) -> None:
        """Send the buckets that are next, if they are complete, after the gradient of one of bucket `number`."""
        self._missing[number] -= 1
        while self._is_last and self._next < len(self._buckets) and not self._missing[self._next]:
            self._send()

    @torch.no_grad()
    def _send(self) -> None:
        parameters = [p for p in self._buckets[self._next] if p.grad is not None]
        self._next += 1
        if parameters:
            flat = _flatten_dense_tensors([p.grad for p in parameters])
            self._sent.append((dist.all_reduce(flat, async_op=True), flat, parameters))


def summed(values: Mapping[str, torch.Tensor], group: Group) -> dict[str, torch.Tensor]:
    """Sum scalars, by name, over all processes, in one message."""
    if group.is_single or not values:
        return dict(values)
    stacked = torch.stack([value.detach().double() for value in values.values()])
    dist.all_reduce(stacked)
    return dict(zip(values, stacked.unbind(), strict=True))


def gathered(rows: torch.Tensor, group: Group) -> torch.Tensor:
    """Gather the rows of all processes in the order of ranks, (n, ...) -> (n x size, ...); n is the same in each."""
    if group.is_single:
        return rows
    parts = [torch.empty_like(rows) for _ in range(group.world_size)]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def sum_arrays(arrays: Sequence[np.ndarray], group: Group) -> None:
    """Replace every float64 array by its sum over all processes, in one message."""
    if group.is_single:
        return
    flat = torch.from_numpy(np.concatenate([array.ravel() for array in arrays]))
    dist.all_reduce(flat)
    for array, part in zip(arrays, flat.split([array.size for array in arrays]), strict=True):
        array[...] = part.view(array.shape).numpy()


def rows_on_main(rows: np.ndarray, group: Group) -> np.ndarray | None:
    """Gather rows (n, D) on rank 0, in the order of ranks; n may differ. Returns None on the other ranks."""
    if group.is_single:
        return rows
    counts = group.from_all(len(rows))
    if not group.is_main:
        if len(rows):
            dist.send(torch.from_numpy(np.ascontiguousarray(rows)), 0)
        return None
    joined = np.empty((sum(counts), *rows.shape[1:]), rows.dtype)
    joined[: counts[0]] = rows
    ends = np.cumsum(counts)
    for rank in range(1, group.world_size):
        if counts[rank]:
            dist.recv(torch.from_numpy(joined[ends[rank - 1] : ends[rank]]), rank)
    return joined


class StopAgreement:
    """Lets all processes stop after the same step, without blocking in any step.

    Each step sends a message with this process's own request and reads the message of the step before; so all processes
    see a request one step later, at the same step.
    """

    def __init__(self, stop: StopRequest, group: Group) -> None:
        self._stop, self._group = stop, group
        self._pending: tuple[dist.Work, torch.Tensor] | None = None

    def reached(self) -> bool:
        """Return True if all processes stop now. Call it once per step on every process."""
        if self._group.is_single:
            return self._stop.requested
        asked = self._answer()
        if asked:
            self._stop.adopt(asked)
            return True
        flag = torch.tensor([self._stop.exit_code])
        work = dist.all_reduce(flag, op=dist.ReduceOp.MAX, async_op=True)
        self._pending = (work, flag)
        return False

    def close(self) -> None:
        """Complete the pending message, which needs all processes."""
        self._answer()

    def _answer(self) -> int:
        if self._pending is None:
            return 0
        work, flag = self._pending
        self._pending = None
        work.wait()
        return int(flag)


def slice_of(count: int, group: Group) -> slice:
    """Return this process's share of `count` rows, a multiple of the number of processes."""
    share = count // group.world_size
    return slice(group.rank * share, (group.rank + 1) * share)


def _buckets(parameters: list[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    """Yield the parameters in order, in lists of one dtype."""
    least, most = _BUCKET_BYTES
    limit = min(max(sum(p.nbytes for p in parameters) // _BUCKETS, least), most)
    bucket: list[torch.nn.Parameter] = []
    size = 0
    for parameter in parameters:
        if bucket and (size >= limit or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        size += parameter.nbytes
    if bucket:
        yield bucket
