"""What a process does for the launcher that started it: say that it lives, leave when the launcher is gone, and say how
it ended. Nothing here imports torch.

The launcher names a private folder in TITOKCTL_LAUNCH. `<local rank>.pid` holds the process's id, `<local rank>.json`
how it ended, `stop` the signal that the launcher was sent before this process could be told, and `alive` is locked by
the launcher for as long as it lives.
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
ALIVE, STOP = "alive", "stop"
ORDERLY = (EXIT_OK, EXIT_STOPPED, EXIT_INTERRUPTED)
_GRACE_S = 60.0


def launch_folder() -> Path | None:
    """The launcher's folder, or None in a process that no launcher of ours started."""
    folder = os.environ.get(FOLDER)
    return Path(folder) if folder and "LOCAL_RANK" in os.environ else None


def has_launcher() -> bool:
    """True in a process that our launcher started: the launcher tells the user how it ended."""
    return launch_folder() is not None


def started() -> None:
    """Register this process with its launcher, if there is one; call it before anything slow is imported."""
    folder = launch_folder()
    if folder is None:
        return
    (folder / f"{place().local_rank}.pid").write_text(str(os.getpid()))
    leave_with_launcher(folder)
    if (folder / STOP).exists():
        os.kill(os.getpid(), int((folder / STOP).read_text()))


def ended(code: int, message: str = "", hint: str = "") -> int:
    """Tell the launcher how this process ends. Returns what to exit with.

    An orderly end, stopping on request included, is a success to torchrun, which would kill the others otherwise while
    one of them still saves.
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
    """Let this process end when the launcher does: it waits in a thread for the lock in `folder`."""
    threading.Thread(target=_wait_for_launcher, args=(folder / ALIVE,), name="launcher", daemon=True).start()


def _wait_for_launcher(path: Path) -> None:
    """Wait for the launcher's lock, which the kernel frees however it ends; then save and go, or just go."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
        pass  # the folder is gone already, and with it the launcher
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_S)
    os._exit(EXIT_STOPPED)
