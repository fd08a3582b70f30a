"""The state of a feature pass that was interrupted, from which the same command resumes it.

Specification: while a set is measured, `<runs>/statistics/.<key>.unfinished/` (`unfinished`) holds settings.json, of
whose path, network and number of rows the key is a hash, and for each process `state-<rank>.npz` with the arrays of
`FeatureCollector.state` and `about`, JSON text: `next` (the position of the first image that is not measured yet), and
what was found while reading those before. The features that are kept one by one lie in
`rows-<rank>-<number of the first row>.npy`, written before the state that counts them; rows that no state counts are
ignored and written again.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from titokctl.errors import UserError
from titokctl.evaluation.features import FeatureCollector
from titokctl.formats.atomic import atomic_path
from titokctl.formats.npz_reader import NpzReader
from titokctl.formats.unfinished import Unfinished

_SECONDS_BETWEEN_SAVES = 30.0


@dataclass
class KeptPass:
    """The kept state of one process's share of a pass.

    Args:
        folder: of the unfinished pass; None to keep nothing, such as while another command has it locked.
        rank: of this process.
        say: reports that nothing more can be kept.
    """

    folder: Path | None
    rank: int
    say: Callable[[str], None]

    def __post_init__(self) -> None:
        self._saved, self._saved_rows = time.monotonic(), 0

    def restored(self, collector: FeatureCollector) -> dict[str, Any] | None:
        """Fill `collector` with the kept state and return its `about`; None if nothing fitting is kept."""
        if self.folder is None or not self._state(self.folder).is_file():
            return None
        try:
            with NpzReader(self._state(self.folder)) as npz:
                about = json.loads(str(npz.array("about")))
                arrays = {name: npz.array(name) for name in npz.names if name != "about"}
            collector.restore(arrays, self._rows(self.folder, int(arrays["kept"])))
        except (UserError, ValueError, KeyError, OSError):
            return None
        self._saved_rows = len(collector.kept_rows)
        return dict(about)

    def is_due(self) -> bool:
        """Return True when the state should be saved, since it was not for a while."""
        return self.folder is not None and time.monotonic() - self._saved >= _SECONDS_BETWEEN_SAVES

    def save(self, collector: FeatureCollector, about: dict[str, Any]) -> None:
        """Save the state of `collector`; if the disk is full, the pass continues without saving."""
        if self.folder is None:
            return
        try:
            self._save(self.folder, collector, about)
        except UserError as error:
            self.say(f"features are no longer saved during the pass: {error.message}")
            self.folder = None

    def _save(self, folder: Path, collector: FeatureCollector, about: dict[str, Any]) -> None:
        rows = collector.kept_rows[self._saved_rows :]
        if len(rows):
            path = folder / f"rows-{self.rank}-{self._saved_rows:08d}.npy"
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                np.save(file, rows, allow_pickle=False)
        arrays: dict[str, Any] = {"about": np.array(json.dumps(about, ensure_ascii=False)), **collector.state()}
        with atomic_path(self._state(folder)) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)
        self._saved, self._saved_rows = time.monotonic(), len(collector.kept_rows)

    def _state(self, folder: Path) -> Path:
        return folder / f"state-{self.rank}.npz"

    def _rows(self, folder: Path, count: int) -> np.ndarray:
        """Return the first `count` kept rows. Raises ValueError when their number differs."""
        parts, found = [], 0
        while found < count:
            path = folder / f"rows-{self.rank}-{found:08d}.npy"
            parts.append(np.load(path, allow_pickle=False))
            found += len(parts[-1])
        if found != count:
            raise ValueError(f"expected {count} kept rows, got {found}")
        return np.concatenate(parts) if parts else np.empty((0, 0), np.float32)


@contextlib.contextmanager
def kept_pass(root: Path, settings: dict[str, Any], is_main: bool, say: Callable[[str], None]) -> Iterator[Path | None]:
    """Hold the folder below `root` in which a pass with `settings` is kept, on rank 0, and yield it.

    What a pass over other images of the same path left is deleted.
    Yields None on other ranks, and where another process works in the folder or it can't be made. The folder is deleted
    when the block ends without an error.
    """
    if not is_main:
        yield None
        return
    named = [settings["path"], settings["features"]["name"], settings["rows"]]
    key = hashlib.sha256(json.dumps(named).encode()).hexdigest()[:32]
    work, held = Unfinished(root / key), None
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(work.locked())
            if work.begin(settings, overwrite=True):
                say("an interrupted pass over these images is resumed")
            held = work.folder
        except UserError as error:
            say(f"features are not saved during the pass: {error.message}")
        yield held
        if held is not None:
            work.remove()
