"""Noticing that another process is gone: each says every few seconds that it lives, and how it left when it did.

A launcher sees the processes of its own machine. Of other machines only silence tells, and whoever waits for one that
is silent would wait for ever. The first process listens to all, the others listen to the first.
"""

import json
import threading
import time

import torch.distributed as dist

from titokctl.errors import EXIT_FAILED, Stopped, UserError

_BEAT_S = 5.0
_SILENCE_S = 40.0
_AGAIN = "run the same command again on every machine; what was finished is kept"


class Pulse:
    """The signs of life of one process, and what it knows of the others'.

    Args:
        store: shared by all processes, for this alone.
        silence: seconds without a sign after which a process counts as gone.
    """

    def __init__(self, store: dist.Store, rank: int, world_size: int, silence: float = _SILENCE_S) -> None:
        self._store, self._rank, self._silence = store, rank, silence
        others = range(1, world_size) if rank == 0 else (0,)
        self._heard = {other: (0, time.monotonic()) for other in others}  # beats, and when the last one came
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)

    def start(self) -> None:
        """Begin to give signs of life, and to listen for those of others."""
        self._thread.start()

    def stop(self) -> None:
        """End that."""
        self._end.set()
        self._thread.join()

    def leave(self, error: BaseException) -> None:
        """Tell the others that this process ends before its time, and why. Only the first to leave is heard."""
        message = f"process {self._rank} ended: {getattr(error, 'message', error)}"
        # The hint too: whoever of a machine's processes says it first, the user reads what mends it.
        hint = getattr(error, "hint", "") or _AGAIN
        record = {"code": getattr(error, "exit_code", EXIT_FAILED), "message": message, "hint": hint}
        try:
            if self._store.add("leaving", 1) == 1:
                self._store.set("left", json.dumps(record))
        except dist.DistError:
            pass  # nobody is there to be told

    def check(self) -> None:
        """Raise Stopped or UserError when another process has left, UserError when one is silent."""
        if self._store.check(["left"]):
            record = json.loads(self._store.get("left"))
            if record["code"] == EXIT_FAILED:
                raise UserError(record["message"], record["hint"])
            raise Stopped(record["code"], "finished work is kept.")
        now = time.monotonic()
        for other, (_, at) in self._heard.items():
            if now - at > self._silence:
                raise UserError(f"process {other} is silent: it or its machine is gone", _AGAIN)

    def _beat(self) -> None:
        try:
            while not self._end.is_set():
                self._store.add(f"beat/{self._rank}", 1)
                self._listen()
                self._end.wait(min(_BEAT_S, self._silence / 4))
        except dist.DistError:
            pass  # the first process is gone; whoever waits finds out by itself

    def _listen(self) -> None:
        for other, (before, _) in self._heard.items():
            count = self._store.add(f"beat/{other}", 0)
            if count != before:
                self._heard[other] = (count, time.monotonic())
