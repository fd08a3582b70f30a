"""Heartbeats between processes: each sends one every few seconds, and the reason when it exits early.

A launcher only sees the processes of its own machine. If a process on another machine dies, missing heartbeats are the
only sign, and a process that waits for it would wait forever. Rank 0 watches all ranks, the others watch rank 0.
"""

import json
import threading
import time

import torch.distributed as dist

from titokctl.errors import EXIT_FAILED, Stopped, UserError

_BEAT_S = 5.0
_SILENCE_S = 40.0
_AGAIN = "run the same command again on every machine; finished work is kept"


class Pulse:
    """The heartbeat of one process, and those it has received.

    Args:
        store: shared by all processes, for heartbeats only.
        silence: seconds without a heartbeat after which a process counts as dead.
    """

    def __init__(self, store: dist.Store, rank: int, world_size: int, silence: float = _SILENCE_S) -> None:
        self._store, self._rank, self._silence = store, rank, silence
        others = range(1, world_size) if rank == 0 else (0,)
        self._received = {
            other: (0, time.monotonic()) for other in others
        }  # number of heartbeats, time of the last one
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)

    @property
    def last_received(self) -> dict[int, float]:
        """The time of the last heartbeat, by rank, on the monotonic clock."""
        return {rank: at for rank, (_, at) in self._received.items()}

    def start(self) -> None:
        """Start sending and receiving heartbeats."""
        self._thread.start()

    def stop(self) -> None:
        """Stop sending and receiving."""
        self._end.set()
        self._thread.join()

    def leave(self, error: BaseException) -> None:
        """Report to the others that this process exits early, and why. Only the first report is kept."""
        message = f"rank {self._rank} failed: {getattr(error, 'message', error)}"
        # With the hint: the user may see this report instead of the original error.
        hint = getattr(error, "hint", "") or _AGAIN
        record = {"code": getattr(error, "exit_code", EXIT_FAILED), "message": message, "hint": hint}
        try:
            if self._store.add("leaving", 1) == 1:
                self._store.set("left", json.dumps(record))
        except dist.DistError:
            pass  # rank 0, which hosts the store, has exited

    def check(self) -> None:
        """Raise Stopped or UserError if another process has left, UserError if its heartbeats are missing."""
        if self._store.check(["left"]):
            record = json.loads(self._store.get("left"))
            if record["code"] == EXIT_FAILED:
                raise UserError(record["message"], record["hint"])
            raise Stopped(record["code"], "Finished work is kept.")
        now = time.monotonic()
        for other, (_, at) in self._received.items():
            if now - at > self._silence:
                raise UserError(
                    f"no heartbeat from rank {other} for {self._silence:g} s: the process or its machine died", _AGAIN
                )

    def _beat(self) -> None:
        try:
            while not self._end.is_set():
                self._store.add(f"beat/{self._rank}", 1)
                self._receive()
                self._end.wait(min(_BEAT_S, self._silence / 4))
        except dist.DistError:
            pass  # rank 0 has exited; a process that waits for it gets this error, too

    def _receive(self) -> None:
        for other, (before, _) in self._received.items():
            count = self._store.add(f"beat/{other}", 0)
            if count != before:
                self._received[other] = (count, time.monotonic())
