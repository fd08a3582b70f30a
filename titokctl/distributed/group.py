"""Several processes that work on one thing, or this one alone: the same interface for both.

Tensors on a GPU travel by NCCL, tensors on the CPU by gloo, so that small agreements never wait for the GPU.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from titokctl.distributed.place import Place, place

# Rank 0 may check a large file or merge a cache alone; a process that dies is noticed by the launcher, not by this.
_PATIENCE = timedelta(hours=24)
_COLLECTIVE_PATIENCE = timedelta(hours=1)


class Group:
    """The processes of a run.

    `rank` and `world_size` as torchrun counts; `store` is shared by all of them, e.g. for a queue of work (its `add`
    is atomic); give each use its own prefix with `shared_store`.
    """

    def __init__(self, where: Place, store: dist.Store) -> None:
        self.rank, self.world_size, self.local_rank = where.rank, where.world_size, where.local_rank
        self._store = store
        self._meetings = 0

    @property
    def is_main(self) -> bool:
        """True for the one process that writes and talks."""
        return self.rank == 0

    @property
    def is_single(self) -> bool:
        """True when there is nobody to talk to."""
        return self.world_size == 1

    def shared_store(self, purpose: str) -> dist.Store:
        """The store with all keys under `purpose`."""
        return dist.PrefixStore(purpose, self._store)

    def barrier(self) -> None:
        """Wait until every process is here, for up to a day; no GPU is involved."""
        if self.is_single:
            return
        key = self._next_key("barrier")
        if self._store.add(f"{key}/count", 1) == self.world_size:
            self._store.set(f"{key}/open", "1")
        self._store.wait([f"{key}/open"], _PATIENCE)

    def from_main(self, value: Any) -> Any:
        """What rank 0 passed, on every process; JSON values. The others wait for up to a day."""
        if self.is_single:
            return value
        key = self._next_key("value")
        if self.is_main:
            self._store.set(key, json.dumps(value))
        else:
            self._store.wait([key], _PATIENCE)
        return json.loads(self._store.get(key))

    def from_all(self, value: Any) -> list[Any]:
        """What each process passed, by rank, on every process; JSON values. Waits for up to a day."""
        if self.is_single:
            return [value]
        key = self._next_key("values")
        self._store.set(f"{key}/{self.rank}", json.dumps(value))
        keys = [f"{key}/{rank}" for rank in range(self.world_size)]
        self._store.wait(keys, _PATIENCE)
        return [json.loads(self._store.get(one)) for one in keys]

    def _next_key(self, what: str) -> str:
        self._meetings += 1
        return f"group/{what}/{self._meetings}"


def single_group() -> Group:
    """This process alone, whatever the environment says."""
    return Group(Place(), dist.HashStore())


@contextlib.contextmanager
def process_group(device: torch.device | str) -> Iterator[Group]:
    """The group that the environment names, or a group of one; on CUDA each process takes the GPU of its local rank.

    `device` is "cpu" or "cuda"; after this, "cuda" means the process's own GPU.
    """
    where = place()
    if where.world_size == 1:
        yield single_group()
        return
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
    group = Group(where, dist.PrefixStore("titokctl", store))
    yield group
    # Rank 0 keeps the store; it leaves last. After an exception the others may never come: no waiting then.
    group.barrier()
    dist.destroy_process_group()
