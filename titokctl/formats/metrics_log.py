"""Logs of a run's numbers: metrics.jsonl, and the programs that show them: TensorBoard, Weights & Biases, Trackio.

Each of these programs is an extra of the package, and one entry of `_SINKS`. metrics.jsonl has one JSON object a line,
each with `step`; the last lines of a killed run may be missing or cut. A resumed run first drops what lies beyond the
step it resumes from, so that each step appears once.
"""

import hashlib
import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Protocol

from titokctl.errors import UserError, install
from titokctl.formats.atomic import disk_errors, write_bytes

_PROJECT = "titokctl"


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
        if self.path.is_file():
            kept = [json.dumps(record) + "\n" for record in self.read() if record["step"] <= step]
            write_bytes(self.path, "".join(kept).encode())

    def read(self) -> list[dict[str, Any]]:
        """Return all whole records in order; a truncated last line, or one that isn't a record, is skipped."""
        if not self.path.is_file():
            return []
        records = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                records.append(json.loads(line))
            except (ValueError, RecursionError):
                continue
        return [r for r in records if isinstance(r, dict) and type(r.get("step")) is int]

    def newest_values(self, until: int | None = None) -> dict[str, Any]:
        """Return the newest value of each name, of those up to step `until` if it is given."""
        values: dict[str, Any] = {}
        for record in self.read():
            if until is None or record["step"] <= until:
                values |= record
        return values


class TensorBoardLog:
    """Scalars for `tensorboard --logdir`, in tensorboard/ of the run folder; arguments as of `open_sink`."""

    def __init__(self, run: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=first_step)

    def append(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point to every curve."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is buffered."""
        self._writer.close()


class WandbLog:
    """A run of Weights & Biases in the project titokctl; WANDB_MODE=offline keeps it in wandb/ of the run folder."""

    def __init__(self, run: Path, first_step: int) -> None:
        import wandb

        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", _PROJECT), name=_name(run), id=_id(run), dir=str(run),
                resume=None if first_step == 1 else "allow", settings=wandb.Settings(silent=True),
            )  # fmt: skip
        except wandb.Error as error:
            raise UserError(
                f"Weights & Biases can't begin a run: {error}", "run `wandb login`, or set WANDB_MODE=offline"
            ) from error

    def append(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point to every curve; a resumed run's steps that are there already are left out by the server."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Send or write what is buffered."""
        self._run.finish()


class TrackioLog:
    """A run of Trackio in the project titokctl, in Trackio's own folder (TRACKIO_DIR) and nowhere else."""

    def __init__(self, run: Path, first_step: int) -> None:
        with redirect_stdout(sys.stderr):  # it greets on stdout, which is for results
            import trackio

            resume = "never" if first_step == 1 else "allow"
            project = os.environ.get("TRACKIO_PROJECT", _PROJECT)
            self._run = trackio.init(project=project, name=_id(run), resume=resume, embed=False)

    def append(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point to every curve."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Write what is buffered."""
        with redirect_stdout(sys.stderr):
            self._run.finish()


_SINKS: Mapping[str, Callable[[Path, int], MetricsSink]] = {
    "tensorboard": TensorBoardLog,
    "wandb": WandbLog,
    "trackio": TrackioLog,
}


def open_sink(name: str, run: Path, first_step: int) -> MetricsSink:
    """Open one of the destinations that training.log names.

    Args:
        name: a name in `_SINKS`; it is that of its package and of its extra, too.
        run: the run folder.
        first_step: the first step that is written; of what an earlier, killed run wrote, later steps don't count.

    Raises UserError when the package is not installed, or does not begin.
    """
    try:
        return _SINKS[name](run, first_step)
    except ImportError as error:
        raise UserError(
            f"training.log: {name} needs the package {name}, which is not installed",
            f"{install(name)}, or leave {name} out of training.log",
        ) from error


def _name(run: Path) -> str:
    return f"{run.parent.name}/{run.name}"


def _id(run: Path) -> str:
    """Return a name of the run that another runs folder does not have: kind, name, and a hash of its path."""
    return f"{run.parent.name}-{run.name}-{hashlib.sha256(str(run.absolute()).encode()).hexdigest()[:8]}"
