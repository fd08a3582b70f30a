"""Counts what torch is asked to do: operations, and those that make the host wait for the device."""

from collections import Counter
from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# What .item(), bool(tensor), float(tensor), torch.equal, nonzero, boolean indexing and unique become.
WAITING = {"_local_scalar_dense", "equal", "nonzero", "masked_select", "unique_dim", "_unique2", "is_nonzero"}


class _Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name.startswith("index") and any(t.dtype == torch.bool for t in torch.utils._pytree.tree_leaves(args[1:])
                                            if isinstance(t, torch.Tensor)):  # fmt: skip
            name = "nonzero"  # that is what indexing by truth values does inside
        self.names[name] += 1
        return func(*args, **(kwargs or {}))


def operations(run: Callable[[], object]) -> Counter[str]:
    """How often each operation is called by `run`, the backward pass included; views count, too."""
    with _Counting() as counting:
        run()
    return counting.names


def waits(names: Counter[str]) -> dict[str, int]:
    """The operations among them for which a host would wait."""
    return {name: count for name, count in names.items() if name in WAITING}
