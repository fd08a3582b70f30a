"""Facts about a machine's hardware for `titokctl doctor`."""

import fcntl
import os
import platform
import re
import shutil
import tempfile
from pathlib import Path

import h5py
import torch

from titokctl.distributed.place import available_cores

_MEMINFO, _CPUINFO, _SHARED = Path("/proc/meminfo"), Path("/proc/cpuinfo"), Path("/dev/shm")
_LONGEST_TEXT = 4096  # characters of a file of the kernel
_DRIVER = Path("/proc/driver/nvidia/version")
_GROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def processor() -> str:
    """Return the name and the usable cores of the CPU."""
    lines = _CPUINFO.read_text().splitlines() if _CPUINFO.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {available_cores()} usable cores"


def graphics() -> list[str]:
    """Return the name and the memory of every usable GPU."""
    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    apple = ["an Apple GPU, for --device mps"] if torch.backends.mps.is_available() else []
    return [f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB" for gpu in found] + apple


def driver() -> str | None:
    """Return the version of NVIDIA's driver, or None where it is unknown."""
    try:
        found = re.search(r"Kernel Module[^\n]*?\s(\d+(?:\.\d+)+)\s", _DRIVER.read_text()[:_LONGEST_TEXT])
    except (OSError, UnicodeDecodeError):
        return None
    return found[1] if found else None


def memory_bytes() -> int | None:
    """Return the memory that this process can still allocate, control group limits included; None where unknown."""
    if not _MEMINFO.is_file():
        return None
    lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines() if ":" in line)
    free = int(lines["MemAvailable"].split()[0]) * 1024
    limits = [path.read_text().strip() for path in _GROUP_LIMITS if path.is_file()]
    return min([free, *(int(text) for text in limits if text.isdigit())])


def shared_memory_bytes() -> int | None:
    """Return the free space in /dev/shm, or None if it doesn't exist."""
    return shutil.disk_usage(_SHARED).free if _SHARED.is_dir() else None


def folder_problem(folder: Path) -> str:
    """Return why no token cache can be written, mapped and read in `folder`, or "" if it can."""
    if not os.access(folder, os.W_OK):
        return "not writable"
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".titokctl-") as inside:
            path = Path(inside) / "probe.h5"
            with h5py.File(path, "w", locking=False) as file:
                file["x"] = 1
            with h5py.File(path, "r", locking=False) as file:
                file["x"][()]
    except OSError as error:
        return f"HDF5 files can't be written there ({' '.join(str(error).split())[:80]})"
    return ""


def has_locks(folder: Path) -> bool:
    """Return True if files in `folder` can be locked (flock), which some network file systems refuse."""
    try:
        with tempfile.TemporaryFile(dir=folder, prefix=".titokctl-") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
