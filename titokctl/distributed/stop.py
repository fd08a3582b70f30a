"""Requests to stop long work: Ctrl-C, SIGTERM, SIGUSR1 and SIGHUP set a flag that jobs check between units of work."""

import contextlib
import os
import signal
import threading
from types import FrameType
from typing import Any

from titokctl.distributed import worker
from titokctl.errors import EXIT_INTERRUPTED, EXIT_STOPPED, Stopped

_SIGNALS = {
    signal.SIGINT: EXIT_INTERRUPTED,
    signal.SIGTERM: EXIT_STOPPED,
    signal.SIGUSR1: EXIT_STOPPED,
    signal.SIGHUP: EXIT_STOPPED,  # the terminal was closed, or the connection to it was lost
}


def is_ignored(number: signal.Signals) -> bool:
    """Return True if this process ignores the signal, as `nohup` makes it ignore SIGHUP; it then stays ignored."""
    return signal.getsignal(number) is signal.SIG_IGN


def handle_early_signals() -> dict[signal.Signals, Any]:
    """End with the code for a stop when a signal comes before a job handles it, while packages are loaded.

    Returns the handlers that were there. Workers leave this to their launcher.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(OSError):  # after SIGHUP the terminal is gone
            os.write(2, b"stopped before any work was begun. Run the same command again.\n")
        os._exit(EXIT_STOPPED)

    if worker.has_launcher() or threading.current_thread() is not threading.main_thread():
        return {}
    hangup = () if is_ignored(signal.SIGHUP) else (signal.SIGHUP,)
    return {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGUSR1, *hangup)}


class StopRequest:
    """A context in which signals request an orderly stop instead of killing the process.

    The first signal decides the exit code; a Ctrl-C after it raises KeyboardInterrupt. Outside the main thread, where
    Python allows no handlers, signals are not caught.
    """

    def __init__(self) -> None:
        self._exit_code: int | None = None
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            handled = [number for number in _SIGNALS if number != signal.SIGHUP or not is_ignored(number)]
            self._previous = {number: signal.signal(number, self._handle) for number in handled}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            # None: the previous handler was not set from Python, so it can't be restored.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # type: ignore[arg-type]
        self._previous = {}

    @property
    def requested(self) -> bool:
        """True after a signal."""
        return self._exit_code is not None

    @property
    def exit_code(self) -> int:
        """The exit code for the signal; 0 before one."""
        return self._exit_code or 0

    def adopt(self, exit_code: int) -> None:
        """Stop because another process was signalled, with its exit code."""
        self._exit_code = exit_code

    def check(self, saved: str = "") -> None:
        """Raise Stopped after a signal; `saved` says in one sentence what is kept."""
        if self._exit_code is not None:
            raise Stopped(self._exit_code, saved)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._exit_code is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self._exit_code is None:
            self._exit_code = _SIGNALS[signal.Signals(number)]
