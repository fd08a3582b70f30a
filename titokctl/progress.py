"""Progress of long work: a protocol, a silent version, and one on stderr.

Jobs get a `Progress` and never print. On a terminal the stderr version draws a tqdm bar; in a pipe or a log file it
writes a plain line every few seconds, so that nothing fills a log with control characters.
"""

import sys
import time
from typing import Any, Protocol, TextIO

from titokctl.readable import counted, duration, plain, width_of, wrapped

_LINE_EVERY_S = 5.0
# With a note, the bar itself is left out: a terminal of usual width has no room for both.
_NOTED = "{desc}: {percentage:.0f}%, {remaining} left{postfix}, {n_fmt}/{total_fmt}{unit}"
_NOTED_WITHOUT_END = "{desc}: {n_fmt}{unit}{postfix}"


def show(text: str, stream: TextIO) -> None:
    """Print a message; on a terminal its lines are broken between words, so that no name is folded."""
    print(_fitted(text, stream), file=stream, flush=True)


def _fitted(text: str, stream: TextIO) -> str:
    return "\n".join(wrapped(plain(text), width_of(stream)))


class Progress(Protocol):
    """The methods that a job calls while it works."""

    def start(self, what: str, total: int | None, unit: str = "images", done: int = 0) -> None:
        """Begin a phase of `total` units (None: unknown), of which an earlier run finished `done`."""

    def advance(self, n: int = 1, note: str = "") -> None:
        """Count `n` more units as finished; `note` is a short text for the live line, such as the loss."""

    def close(self) -> None:
        """End the phase; a second call does nothing."""

    def say(self, text: str) -> None:
        """Show a remark on a line of its own."""

    def warn(self, text: str) -> None:
        """Show a warning, also with --quiet: the result is less than the user asked for."""


class SilentProgress:
    """Progress that shows nothing, for use as a library."""

    def start(self, what: str, total: int | None, unit: str = "images", done: int = 0) -> None:
        pass

    def advance(self, n: int = 1, note: str = "") -> None:
        pass

    def close(self) -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        self.say(f"warning: {text}")


class QuietProgress(SilentProgress):
    """Progress that shows only warnings, on stderr, for --quiet."""

    def warn(self, text: str) -> None:
        show(f"warning: {text}", sys.stderr)


class StderrProgress:
    """Progress as a bar on a terminal, and as a line every few seconds elsewhere.

    Args:
        stream: where to write; stderr by default.
        line_every: seconds between plain lines when `stream` is not a terminal.
    """

    def __init__(self, stream: TextIO | None = None, line_every: float = _LINE_EVERY_S) -> None:
        self._stream = stream or sys.stderr
        self._line_every = line_every
        self._bar: Any = None
        self._open = False

    def start(self, what: str, total: int | None, unit: str = "images", done: int = 0) -> None:
        self.close()
        self._what, self._total, self._unit = what, total, unit
        self._done = self._first = done
        self._began = self._last_line = time.monotonic()
        self._note = ""
        self._open = True
        if self._stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, desc=what, unit=f" {unit}", file=self._stream,
                             dynamic_ncols=True, leave=True, mininterval=0.2)  # fmt: skip

    def advance(self, n: int = 1, note: str = "") -> None:
        self._done += n
        self._note = note or self._note
        if self._bar is not None:
            if note:
                self._bar.bar_format = _NOTED if self._total else _NOTED_WITHOUT_END
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(n)
        elif time.monotonic() - self._last_line >= self._line_every:
            self._line()

    def close(self) -> None:
        if not self._open:
            return
        self._open = False
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        else:
            self._line()

    def say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.write(_fitted(text, self._stream), file=self._stream)
        else:
            show(text, self._stream)

    def warn(self, text: str) -> None:
        self.say(f"warning: {text}")

    def _line(self) -> None:
        now = time.monotonic()
        self._last_line = now
        rate = (self._done - self._first) / max(now - self._began, 1e-9)
        parts = [counted(self._done, self._unit), f"{rate:,.1f} {self._unit}/s"]
        if self._total:
            parts[0] = f"{self._done:,}/{counted(self._total, self._unit)}"
            if rate > 0 and self._done < self._total:
                parts.append(f"{duration((self._total - self._done) / rate)} left")
        if not self._open:
            parts.append(f"took {duration(now - self._began)}")
        if self._note:
            parts.append(self._note)
        print(f"{self._what}: {', '.join(parts)}", file=self._stream, flush=True)
