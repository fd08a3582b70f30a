"""A worker's side of the launcher's protocol: register, exit when the launcher dies, report how it ended. No torch.

The launcher names a private folder in TITOKCTL_LAUNCH. In it, `<local rank>.pid` is the worker's process id, `<local
rank>.json` its report, `stop` the signal that the launcher received (for workers that start later), and `alive` is
locked by the launcher as long as it runs. `exit-codes` is torchrun's view of workers that failed: JSON, exit codes by
local rank, negative for a signal. `failed` is one line about a failure of torchrun itself.
"""

import fcntl
import json
import os
import signal
import threading
import time
from pathlib import Path

from titokctl.distributed.place import place
from titokctl.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_STOPPED

FOLDER = "TITOKCTL_LAUNCH"
ALIVE, STOP, EXIT_CODES, FAILED = "alive", "stop", "exit-codes", "failed"
ORDERLY = (EXIT_OK, EXIT_STOPPED, EXIT_INTERRUPTED)
_GRACE_S = 60.0


def launch_folder() -> Path | None:
    """Return the launcher's folder, or None in a process without a launcher."""
    folder = os.environ.get(FOLDER)
    return Path(folder) if folder and "LOCAL_RANK" in os.environ else None


def has_launcher() -> bool:
    """Return True in a process that the launcher started; the launcher then reports its error to the user."""
    return launch_folder() is not None


def started() -> None:
    """Register this process with its launcher, if any. Call it before slow imports."""
    folder = launch_folder()
    if folder is None:
        return
    (folder / f"{place().local_rank}.pid").write_text(str(os.getpid()))
    leave_with_launcher(folder)
    if (folder / STOP).exists():
        os.kill(os.getpid(), int((folder / STOP).read_text()))


def ended(code: int, message: str = "", hint: str = "") -> int:
    """Report to the launcher how this process ends. Returns the exit code to use.

    For torchrun an orderly end, including a stop on request, is a success; after a failure it would kill the other
    workers, which may still be saving.
    """
    folder = launch_folder()
    if folder is None:
        return code
    record = {"code": code, "message": message, "hint": hint, "time": time.time()}
    partial = folder / f"{place().local_rank}.part"
    partial.write_text(json.dumps(record))
    partial.rename(partial.with_suffix(".json"))
    return EXIT_OK if code in ORDERLY else code


def leave_with_launcher(folder: Path) -> None:
    """End this process when the launcher ends: a thread waits for the lock in `folder`."""
    threading.Thread(target=_wait_for_launcher, args=(folder / ALIVE,), name="launcher", daemon=True).start()


def _wait_for_launcher(path: Path) -> None:
    """Wait for the launcher's lock, which the kernel releases when it ends; then stop this process."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
        pass  # the folder was deleted, so the launcher has ended
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_S)
    os._exit(EXIT_STOPPED)
