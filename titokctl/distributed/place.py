"""The rank of this process, read from the environment, and the cores that it may use; imports nothing heavy.

torchrun sets RANK, LOCAL_RANK and WORLD_SIZE. Under SLURM's srun with several tasks and without torchrun, every task is
a process, and the same variables are derived from SLURM's.
"""

import os
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

_PORTS = (20_000, 40_000)


@dataclass(frozen=True)
class Place:
    """Process `rank` of `world_size`; `local_rank` counts the processes of its machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """True for rank 0, the process that writes files and reports to the user."""
        return self.rank == 0


def place() -> Place:
    """Return the rank of this process; without a launcher it is the only one."""
    rank, size, local = (os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if rank is None or size is None:
        return Place()
    return Place(int(rank), int(size), int(local or 0))


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_placed(environment: Mapping[str, str]) -> bool:
    """Return True if `environment` belongs to one of several processes.

    Some Kubernetes trainers set a RANK per machine, beside torchrun's PET_ variables: not the rank of a process.
    """
    return "RANK" in environment and ("LOCAL_RANK" in environment or not has_trainer(environment))


def has_trainer(environment: Mapping[str, str]) -> bool:
    """Return True if a Kubernetes trainer has set torchrun's PET_ variables."""
    return "PET_NNODES" in environment or "PET_NPROC_PER_NODE" in environment


def adopt_slurm(environment: MutableMapping[str, str]) -> None:
    """Use the tasks of an srun step as processes: set the variables in `environment` that torchrun would set.

    Does nothing outside a step of several tasks, as in a batch script itself, or if RANK is set.
    """
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
    if "RANK" in environment or tasks < 2 or "SLURM_PROCID" not in environment:
        return
    environment["RANK"] = environment["SLURM_PROCID"]
    environment["WORLD_SIZE"] = str(tasks)
    environment["LOCAL_RANK"] = environment.get("SLURM_LOCALID", "0")
    environment.setdefault("MASTER_ADDR", first_host(environment.get("SLURM_STEP_NODELIST", "127.0.0.1")))
    span = _PORTS[1] - _PORTS[0]
    environment.setdefault("MASTER_PORT", str(_PORTS[0] + int(environment.get("SLURM_JOB_ID", "0")) % span))


def first_host(nodes: str) -> str:
    """Return the first name of a SLURM node list: "gpu[03-05,9],cpu1" gives "gpu03"."""
    found = re.match(r"([^,\[]+)(?:\[([^,\-\]]+)[^\]]*\]([^,]*))?", nodes)
    return f"{found[1]}{found[2] or ''}{found[3] or ''}" if found else nodes
