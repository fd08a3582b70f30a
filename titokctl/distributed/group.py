"""The processes of a run: one interface for several processes and for a single one.

Tensors on a GPU go through NCCL, tensors on the CPU through gloo, so that small messages never wait for the GPU.
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

_RENDEZVOUS_TIMEOUT = timedelta(hours=24)
_COLLECTIVE_TIMEOUT = timedelta(hours=1)
_POLL_S = 0.1
_FAREWELL_S = 30.0


class Group:
    """The processes of a run.

    `rank` and `world_size` are torchrun's. All processes share a store, for example for a queue of work: its `add` is
    atomic. `shared_store` gives each purpose its own prefix.
    """

    def __init__(self, where: Place, store: "dist.Store | None" = None, pulse: "Pulse | None" = None) -> None:
        self.rank, self.world_size = where.rank, where.world_size
        self._given_store, self._pulse = store, pulse
        self._meetings = self._uses = 0

    @property
    def is_main(self) -> bool:
        """True for rank 0, the process that writes files and reports to the user."""
        return self.rank == 0

    @property
    def is_single(self) -> bool:
        """True if there is only one process."""
        return self.world_size == 1

    @functools.cached_property
    def _store(self) -> "dist.Store":
        import torch.distributed as dist

        return self._given_store or dist.HashStore()

    def shared_store(self, purpose: str) -> "dist.Store":
        """Return the store with the prefix `purpose` on all keys."""
        import torch.distributed as dist

        return dist.PrefixStore(purpose, self._store)

    def next_use(self) -> int:
        """Return the next number of a counter; processes that call it equally often get the same numbers."""
        self._uses += 1
        return self._uses

    def check(self) -> None:
        """Raise Stopped or UserError if another process has left, or has sent no heartbeat for too long."""
        if self._pulse is not None:
            self._pulse.check()

    def wait_until(self, is_done: Callable[[], bool], meanwhile: Callable[[], None] | None = None) -> None:
        """Wait without a time limit, calling `meanwhile` repeatedly; no GPU is involved. Raises as `check`.

        A blocking wait of the store would not react to signals.
        """
        while not is_done():
            if meanwhile is not None:
                meanwhile()
            self.check()
            time.sleep(_POLL_S)

    def barrier(self) -> None:
        """Wait until every process has called this. Raises as `check`."""
        self.from_all(None)

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """Let rank 0 complete the block, such as a download, before the others begin it. Raises as `check`."""
        if not self.is_main:
            self.barrier()
        yield
        if self.is_main:
            self.barrier()

    def from_main(self, value: Any) -> Any:
        """Broadcast a JSON value from rank 0; the other processes wait for it. Raises as `check`."""
        if self.is_single:
            return value
        key = self._next_key("value")
        if self.is_main:
            self._store.set(key, json.dumps(value))
        else:
            self.wait_until(lambda: self._store.check([key]))
        return json.loads(self._store.get(key))

    def from_all(self, value: Any) -> list[Any]:
        """Gather a JSON value from every process, in the order of ranks. Raises as `check`."""
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
    """Return the group of this process alone, whatever the environment says."""
    return Group(Place())


@contextlib.contextmanager
def process_group(device: "torch.device | str") -> Iterator[Group]:
    """Join the process group that the environment describes, or a group of one.

    Args:
        device: "cpu" or "cuda". On CUDA each process uses the GPU of its local rank; "cuda" then means that GPU.
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
        # Some clusters make only its own GPU visible to each process.
        torch.cuda.set_device(where.local_rank % torch.cuda.device_count())
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    store, rank, size = next(iter(dist.rendezvous("env://", timeout=_RENDEZVOUS_TIMEOUT)))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        store=dist.PrefixStore("collectives", store),
        rank=rank,
        world_size=size,
        timeout=_COLLECTIVE_TIMEOUT,
    )
    pulse = Pulse(dist.PrefixStore("pulse", store), rank, size)
    group = Group(where, dist.PrefixStore("titokctl", store), pulse)
    pulse.start()
    try:
        yield group
        group.barrier()
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        raise UserError(
            "lost the connection to rank 0",
            "look for its error on the first machine, then run the same command again on every machine",
        ) from error
    except BaseException as error:
        pulse.leave(error)
        if rank or isinstance(error, Stopped):
            with contextlib.suppress(dist.DistError):
                _leave_in_order(store, rank, size)  # the others read the reason in the store
        raise
    finally:
        pulse.stop()
    dist.destroy_process_group()
    _leave_in_order(store, rank, size)


def _leave_in_order(store: "dist.Store", rank: int, size: int) -> None:
    """Let rank 0, which hosts the store, exit last; the other processes don't use the store after this."""
    if rank:
        store.add("titokctl/gone", 1)
        return
    until = time.monotonic() + _FAREWELL_S
    while store.add("titokctl/gone", 0) < size - 1 and time.monotonic() < until:
        time.sleep(_POLL_S)
