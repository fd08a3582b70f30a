"""A local Ray cluster for the tests of one process, drivers that use it, and processes of it that are killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from command_line import PATIENCE_S, ROOT
from process_tree import children, wait_for_end

# No message to Ray's makers; workers that get as much of a busy machine as the test does; a small object store.
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": "200000000",
}


@contextmanager
def cluster(**more: str) -> Iterator[str]:
    """Start a cluster with two CPUs, to which this process is connected; yields its address."""
    import ray

    before = dict(os.environ)
    os.environ |= SETTINGS | more
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    try:
        for is_last in (False, False, True):
            try:
                ray.init(
                    num_cpus=2,
                    include_dashboard=False,
                    log_to_driver=False,
                    configure_logging=False,
                    object_store_memory=200_000_000,
                    runtime_env={"env_vars": {"PYTHONPATH": path}},
                )
                break
            except Exception:  # on a busy machine Ray does not start within its half minute
                ray.shutdown()
                if is_last:
                    raise
        yield ray.get_runtime_context().gcs_address
    finally:
        ray.shutdown()
        os.environ.clear()
        os.environ |= before


def driver(
    start: Callable[..., "subprocess.Popen[str]"], command: list[str], address: str, workers: int
) -> "subprocess.Popen[str]":
    """Start a command with Ray as its engine, in a process of its own."""
    ray = ["--engine", "ray", "--address", address, "--max-workers", str(workers)]
    environment = {**os.environ, **SETTINGS, "PYTHONPATH": str(ROOT)}
    return start([sys.executable, "-m", "titokctl", *command, *ray], env=environment, stdin=subprocess.DEVNULL)


def titles(process: int) -> dict[int, str]:
    """Return the titles of all processes below `process`; Ray's say what they work on."""
    found = {}
    for child in children(process):
        try:
            found[child] = Path(f"/proc/{child}/cmdline").read_text().split("\0")[0].strip()
        except OSError:
            continue
    return found


def kill_one(driver: "subprocess.Popen[str]", title: str, below: int | None = None) -> bool:
    """Kill a process whose title begins with `title`, once there is one. Returns False if `driver` ends before.

    Args:
        below: the process that started the cluster; this one by default.
    """
    until = time.monotonic() + PATIENCE_S
    while driver.poll() is None:
        assert time.monotonic() < until
        if found := [one for one, name in titles(below or os.getpid()).items() if name.startswith(title)]:
            os.kill(found[0], signal.SIGKILL)
            wait_for_end(found[:1])
            return True
        time.sleep(0.002)
    return False
