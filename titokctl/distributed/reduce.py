"""Sums and agreements over the processes of a group. With one process, each leaves its input unchanged, bit for bit."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from titokctl.distributed.group import Group
from titokctl.distributed.stop import StopRequest

_BUCKET_BYTES = 64 << 20


@torch.no_grad()
def sum_gradients(parameters: Iterable[torch.nn.Parameter], group: Group) -> None:
    """Replace every gradient by its sum over all processes, in buckets; one is sent while the next is packed.

    A missing gradient must be missing in every process, as it is when all run the same code.
    """
    if group.is_single:
        return
    waiting = []
    for bucket in _buckets([p.grad for p in parameters if p.grad is not None]):
        flat = _flatten_dense_tensors(bucket)
        waiting.append((dist.all_reduce(flat, async_op=True), flat, bucket))
    for work, flat, bucket in waiting:
        work.wait()
        torch._foreach_copy_(bucket, list(_unflatten_dense_tensors(flat, bucket)))


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


def _buckets(tensors: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Yield the tensors in order, in lists of one dtype and about `_BUCKET_BYTES`."""
    bucket: list[torch.Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (size > _BUCKET_BYTES or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.nbytes
    if bucket:
        yield bucket
