"""Logs of a run's numbers: metrics.jsonl, and TensorBoard's event files beside it.

metrics.jsonl has one JSON object a line, each with `step`; the last lines of a killed run may be missing or cut.
A resumed run first drops what lies beyond the step it resumes from, so that each step appears once.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from titokctl.errors import UserError
from titokctl.formats.atomic import disk_errors, write_bytes


class MetricsSink(Protocol):
    """A destination for the numbers of a run."""

    def append(self, step: int, values: Mapping[str, float]) -> None:
        """Record numbers by name, after `step` steps."""

    def close(self) -> None:
        """Finish; nothing more is appended."""


class MetricsLog:
    """Append-only records of a run.

    Args:
        path: the .jsonl file; its folder exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, step: int, values: Mapping[str, float | str]) -> None:
        """Add one record; numbers that are not finite become null, which JSON has and NaN is not."""
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        with disk_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **finite}) + "\n")

    def close(self) -> None:
        """Do nothing: each record is written at once."""

    def keep_until(self, step: int) -> None:
        """Drop records with a step beyond `step`."""
        if self.path.exists():
            kept = [json.dumps(record) + "\n" for record in self.read() if record["step"] <= step]
            write_bytes(self.path, "".join(kept).encode())

    def read(self) -> list[dict[str, Any]]:
        """Return all whole records in order; a truncated last line is skipped."""
        if not self.path.exists():
            return []
        records = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                continue
        return [r for r in records if isinstance(r, dict) and "step" in r]

    def newest_values(self) -> dict[str, Any]:
        """Return the newest value of each name."""
        values: dict[str, Any] = {}
        for record in self.read():
            values |= record
        return values


class TensorBoardLog:
    """Scalars for `tensorboard --logdir`.

    Args:
        folder: where the event files go.
        first_step: what an earlier, killed run wrote from here on is hidden.

    Raises UserError when the package is not installed.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(
                "training.tensorboard needs the package tensorboard, which is not installed",
                "pip install 'titokctl[tensorboard]', or --set training.tensorboard=false",
            ) from error
        self._writer = SummaryWriter(str(folder), purge_step=first_step)

    def append(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point to every curve."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is buffered."""
        self._writer.close()
