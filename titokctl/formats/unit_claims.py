"""Claims on units by processes that share nothing but a folder: who works on what, so that others take something else.

Specification: `<parts>/claims/` holds `<owner>.owner`, a JSON file for each process at work (host, namespace, process,
started, part), whose modification time its process renews every few seconds, and `unit-<8 digits>.claim`, made with an
exclusive create, whose content is the name of its owner. A claim is stale when its owner's file is gone, or has not
been renewed for two minutes by the file system's clock, or names a process of this machine that is no more; anyone may
then take it over. Claims only save work: should two processes make a part twice after all, both make the same bytes and
either may be renamed into place. A unit is finished when its part is there, and not before.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from pathlib import Path
from typing import Any

FOLDER = "claims"
MERGE = -1  # claimed like a unit by the process that merges
LEASE_S = 120.0
_BEAT_S = 10.0


class UnitClaims:
    """The claims of this process in one folder of parts; a context manager.

    Args:
        parts: the folder of parts.
        part: what the user calls this job ("3/8"), for people who look into the folder.
        lease: seconds without a sign of life after which a claim may be taken over.
    """

    def __init__(self, parts: Path, part: str = "", lease: float = LEASE_S) -> None:
        self._folder, self._part, self._lease = parts / FOLDER, part, lease
        self._name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._own = self._folder / f"{self._name}.owner"
        self._held: set[int] = set()
        self._end = threading.Event()

    def __enter__(self) -> "UnitClaims":
        self._folder.mkdir(parents=True, exist_ok=True)
        self._own.write_text(json.dumps(_identity() | {"part": self._part}))
        self._beat = threading.Thread(target=self._renew, name="claims", daemon=True)
        self._beat.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._beat.join()
        for unit in list(self._held):
            self.release(unit)
        self._own.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._folder.rmdir()

    def take(self, unit: int) -> bool:
        """Claim `unit`, also from an owner that is no more. False when another process has it."""
        place = self._place(unit)
        if not self._create(place):
            owner = self._owner_of(place)
            if owner is None or owner == self._name or self._silence(place, owner) <= self._lease:
                return False
            self._withdraw(place, owner)
            if not self._create(place):
                return False
        self._held.add(unit)
        return True

    def release(self, unit: int) -> None:
        """Give a claim back, finished or not."""
        self._held.discard(unit)
        place = self._place(unit)
        if self._owner_of(place) == self._name:
            place.unlink(missing_ok=True)

    def others_at_work(self) -> bool:
        """True when all claims of others are renewed; False while one may yet have to be taken over."""
        for place in self._folder.glob("*.claim"):
            owner = self._owner_of(place)
            if owner is not None and owner != self._name and self._silence(place, owner) > 3 * _BEAT_S:
                return False
        return True

    def _create(self, place: Path) -> bool:
        try:
            descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except (FileExistsError, FileNotFoundError):  # without the folder, another process has merged and removed it
            return False
        with os.fdopen(descriptor, "w") as file:
            file.write(self._name)
        return True

    def _withdraw(self, place: Path, owner: str) -> None:
        """Remove the claim of a dead owner; of several who try, one succeeds."""
        aside = place.with_name(f".{place.name}-{secrets.token_hex(4)}")
        with contextlib.suppress(OSError):
            os.rename(place, aside)
            if aside.read_text() != owner:  # it was taken over a moment ago: give it back
                with contextlib.suppress(OSError):
                    os.link(aside, place)
            aside.unlink(missing_ok=True)

    def _owner_of(self, place: Path) -> str | None:
        """Who has the claim; "" when that was never written; None when there is no claim."""
        try:
            return place.read_text(errors="replace")[:300]
        except OSError:
            return None

    def _silence(self, place: Path, owner: str) -> float:
        """Seconds since the owner of the claim at `place` gave a sign of life; infinite when it is dead for sure."""
        file = self._folder / f"{Path(owner).name}.owner" if owner else place
        try:
            record = json.loads(file.read_text()) if owner else {}
            age = self._now() - file.stat().st_mtime
        except FileNotFoundError:
            return float("inf")
        except (OSError, ValueError):
            return 0.0  # being written, or not readable just now
        return float("inf") if _is_dead(record) else age

    def _now(self) -> float:
        """The file system's clock, which need not be this machine's."""
        os.utime(self._own)
        return self._own.stat().st_mtime

    def _renew(self) -> None:
        while not self._end.wait(_BEAT_S):
            with contextlib.suppress(OSError):
                os.utime(self._own)

    def _place(self, unit: int) -> Path:
        return self._folder / (f"unit-{unit:08d}.claim" if unit != MERGE else "merge.claim")


def _identity() -> dict[str, Any]:
    """What tells this process from all others, as far as this system says."""
    return {
        "host": _text_of("/proc/sys/kernel/random/boot_id") or socket.gethostname(),
        "namespace": _link_of("/proc/self/ns/pid"),
        "process": os.getpid(),
        "started": _started(os.getpid()),
        "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _is_dead(record: Any) -> bool:
    """True when the record names a process that this process could see, and it is gone."""
    own = _identity()
    if not isinstance(record, dict) or not own["namespace"] or not own["started"]:
        return False
    if (record.get("host"), record.get("namespace")) != (own["host"], own["namespace"]):
        return False
    process = record.get("process")
    return isinstance(process, int) and _started(process) != record.get("started")


def _started(process: int) -> str:
    """When a process began, in the kernel's ticks; "" when it is gone, a zombie, or the system does not say."""
    fields = _text_of(f"/proc/{process}/stat").rpartition(")")[2].split()
    return "" if len(fields) < 20 or fields[0] in "ZX" else fields[19]


def _text_of(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _link_of(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
