"""Several processes that work on one thing, or this one alone: the same interface for both.

Tensors on a GPU travel by NCCL, tensors on the CPU by gloo, so that small agreements never wait for the GPU.
"""

import contextlib
import functools
import json
import os
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from titokctl.distributed.place import Place, place
from titokctl.errors import Stopped, UserError

# torch is imported where it is used: a Context has a group, and `titokctl runs ls` need not wait two seconds for it.
if TYPE_CHECKING:
    import torch
    import torch.distributed as dist

    from titokctl.distributed.pulse import Pulse

_PATIENCE = timedelta(hours=24)
_COLLECTIVE_PATIENCE = timedelta(hours=1)
_LOOK_EVERY_S = 0.1
_FAREWELL_S = 30.0


class Group:
    """The processes of a run.

    `rank` and `world_size` as torchrun counts; `store` is shared by all of them, e.g. for a queue of work (its `add`
    is atomic); give each use its own prefix with `shared_store`.
    """

    def __init__(self, where: Place, store: "dist.Store | None" = None, pulse: "Pulse | None" = None) -> None:
        self.rank, self.world_size = where.rank, where.world_size
        self._given_store, self._pulse = store, pulse
        self._meetings = self._uses = 0

    @property
    def is_main(self) -> bool:
        """True for the one process that writes and talks."""
        return self.rank == 0

    @property
    def is_single(self) -> bool:
        """True when there is nobody to talk to."""
        return self.world_size == 1

    @functools.cached_property
    def _store(self) -> "dist.Store":
        import torch.distributed as dist

        return self._given_store or dist.HashStore()

    def shared_store(self, purpose: str) -> "dist.Store":
        """The store with all keys under `purpose`."""
        import torch.distributed as dist

        return dist.PrefixStore(purpose, self._store)

    def next_use(self) -> int:
        """A number that no earlier call gave; the same in every process that calls it as often."""
        self._uses += 1
        return self._uses

    def check(self) -> None:
        """Raise Stopped or UserError when waiting for the others is in vain: one has left, or gives no sign of life."""
        if self._pulse is not None:
            self._pulse.check()

    def wait_until(self, is_done: Callable[[], bool], meanwhile: Callable[[], None] | None = None) -> None:
        """Wait, however long that takes, calling `meanwhile` again and again; no GPU is involved. Raises as `check`.

        A wait inside the store would be deaf to signals.
        """
        while not is_done():
            if meanwhile is not None:
                meanwhile()
            self.check()
            time.sleep(_LOOK_EVERY_S)

    def barrier(self) -> None:
        """Wait until every process is here. Raises as `check`."""
        self.from_all(None)

    def from_main(self, value: Any) -> Any:
        """What rank 0 passed, on every process; JSON values. The others wait for it. Raises as `check`."""
        if self.is_single:
            return value
        key = self._next_key("value")
        if self.is_main:
            self._store.set(key, json.dumps(value))
        else:
            self.wait_until(lambda: self._store.check([key]))
        return json.loads(self._store.get(key))

    def from_all(self, value: Any) -> list[Any]:
        """What every process passed, in the order of their ranks; JSON values. Raises as `check`."""
        if self.is_single:
            return [value]
        key = self._next_key("values")
        self._store.set(f"{key}/{self.rank}", json.dumps(value))
        keys = [f"{key}/{rank}" for rank in range(self.world_size)]
        self.wait_until(lambda: self._store.check(keys))
        return [json.loads(self._store.get(each)) for each in keys]

    def _next_key(self, what: str) -> str:
        self._meetings += 1
        return f"group/{what}/{self._meetings}"


def single_group() -> Group:
    """This process alone, whatever the environment says."""
    return Group(Place())


@contextlib.contextmanager
def process_group(device: "torch.device | str") -> Iterator[Group]:
    """The group that the environment names, or a group of one; on CUDA each process takes the GPU of its local rank.

    `device` is "cpu" or "cuda"; after this, "cuda" means the process's own GPU.
    """
    where = place()
    if where.world_size == 1:
        yield single_group()
        return
    import torch
    import torch.distributed as dist

    from titokctl.distributed.pulse import Pulse

    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        # A cluster may show each process one GPU only, its own.
        torch.cuda.set_device(where.local_rank % torch.cuda.device_count())
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    store, rank, size = next(iter(dist.rendezvous("env://", timeout=_PATIENCE)))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        store=dist.PrefixStore("collectives", store),
        rank=rank,
        world_size=size,
        timeout=_COLLECTIVE_PATIENCE,
    )
    pulse = Pulse(dist.PrefixStore("pulse", store), rank, size)
    group = Group(where, dist.PrefixStore("titokctl", store), pulse)
    pulse.start()
    try:
        yield group
        group.barrier()
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        raise UserError(
            "the connection to the first process is lost",
            "see what ended it there, then run the same command again on every machine",
        ) from error
    except BaseException as error:
        pulse.leave(error)
        if rank or isinstance(error, Stopped):
            with contextlib.suppress(dist.DistError):
                _leave_in_order(store, rank, size)  # the others read there why
        raise
    finally:
        pulse.stop()
    dist.destroy_process_group()
    _leave_in_order(store, rank, size)


def _leave_in_order(store: "dist.Store", rank: int, size: int) -> None:
    """The process that keeps the store goes last; the others have no use for it behind this."""
    if rank:
        store.add("titokctl/gone", 1)
        return
    until = time.monotonic() + _FAREWELL_S
    while store.add("titokctl/gone", 0) < size - 1 and time.monotonic() < until:
        time.sleep(_LOOK_EVERY_S)
