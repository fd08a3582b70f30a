"""Where the tests start from, and how a run of the command line ended."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import titokctl

ROOT = Path(titokctl.__file__).resolve().parents[1]
# After which a process counts as hung: a guard, not a measure of anything. Machines are slow and busy.
PATIENCE_S = 600


@dataclass(frozen=True)
class CliResult:
    """How one run of the command line ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """stdout read as JSON."""
        return json.loads(self.stdout)


RunCli = Callable[..., CliResult]
