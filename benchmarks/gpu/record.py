"""The record of an acceptance run: checks, speeds, waits for the device and kernel profiles, written as they come."""

import collections
import contextlib
import json
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.counting import counted
from benchmarks.gpu import goals


@dataclass
class Record:
    """What an acceptance run found.

    Args:
        folder: of the JSON file, the page and the profiles.
        work: a folder for temporary files.
        device: "cuda", or "cpu" to try the run itself.
        small: tiny sizes.
    """

    folder: Path
    work: Path
    device: str
    small: bool
    facts: dict[str, Any] = field(default_factory=dict)
    checks: list[dict[str, Any]] = field(default_factory=list)
    speeds: dict[str, dict[str, Any]] = field(default_factory=dict)
    waits: dict[str, dict[str, int]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def failed(self) -> list[str]:
        """Names of the checks that failed."""
        return [check["name"] for check in self.checks if not check["ok"]]

    def check(self, name: str, ok: bool, **facts: Any) -> None:
        """Record and print whether `name` holds, with the numbers that say so."""
        self.checks.append({"name": name, "ok": bool(ok), **facts})
        print(f"{'ok  ' if ok else 'FAIL'} {name}: {_shown(facts)}", flush=True)

    def speed(self, name: str, **facts: Any) -> None:
        """Record and print measured numbers."""
        self.speeds[name] = facts
        print(f"     {name}: {_shown(facts)}", flush=True)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Turn an error in the block into a failed check, so that the run goes on."""
        try:
            yield
        except (Exception, SystemExit) as error:
            traceback.print_exc(limit=-6)
            self.check(name, False, error=f"{type(error).__name__}: {str(error)[:500]}")
        finally:
            if self.device == "cuda":
                torch.cuda.empty_cache()

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Count the lines of the package that wait for the device in the block, by torch's own detector."""
        if self.device != "cuda":
            yield
            return
        found: collections.Counter[str] = collections.Counter()

        def note(message: Any, category: Any, filename: str, line_number: int, *_: Any) -> None:
            if "synchronizing CUDA operation" in str(message):
                found[_callers() or f"{filename}:{line_number}"] += 1

        before = warnings.showwarning
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = note  # type: ignore[assignment]
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield
            finally:
                torch.cuda.set_sync_debug_mode("default")
                warnings.showwarning = before
        self.waits[what] = dict(found)
        if found:
            print(f"     waits in {what}: {dict(found)}", flush=True)

    def profile(self, name: str, run: Callable[[], object], rows: int = 30) -> None:
        """Add the table of kernels of one run to profiles.txt."""
        if self.device != "cuda":
            return
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            run()
            torch.cuda.synchronize()
        table = profiler.key_averages().table(sort_by="self_cuda_time_total", row_limit=rows, max_name_column_width=150)
        with (self.folder / "profiles.txt").open("a") as file:
            file.write(f"\n===== {name}\n{table}\n")

    def seconds_of(self, run: Callable[[], object], repeats: int = 5, warm: int = 2) -> float:
        """Return the median seconds of `run` on the device."""
        for _ in range(warm):
            run()
        if self.device != "cuda":
            began = time.perf_counter()
            run()
            return time.perf_counter() - began
        times = []
        for _ in range(repeats):
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            run()
            last.record()
            torch.cuda.synchronize()
            times.append(first.elapsed_time(last) / 1e3)
        return sorted(times)[len(times) // 2]

    def share(self, run: Callable[[], object], seconds: float) -> float:
        """Return the share of the measured 16-bit peak that `seconds` for the operations of `run` are."""
        return counted(run)["operations"] / seconds / self.speeds["peak"]["bf16"]

    def write(self) -> None:
        """Write gpu_check.json and gpu_check.md."""
        self.folder.mkdir(parents=True, exist_ok=True)
        found = {name: getattr(self, name) for name in ("facts", "checks", "speeds", "waits", "left_out", "seconds")}
        (self.folder / "gpu_check.json").write_text(json.dumps(found, indent=1, default=str) + "\n")
        (self.folder / "gpu_check.md").write_text(self._page())

    def _page(self) -> str:
        lines = [f"# Acceptance run on {self.facts.get('gpu', self.device)}", ""]
        lines += [f"- {name}: {value}" for name, value in self.facts.items()]
        if self.device == "cuda" and not self.small:  # the goals are of full sizes on a GPU
            lines += ["", *goals.table(self.speeds)]
        lines += ["", "| check | holds | numbers |", "|---|---|---|"]
        for each in self.checks:
            rest = {name: value for name, value in each.items() if name not in ("name", "ok")}
            lines.append(f"| {each['name']} | {'yes' if each['ok'] else '**no**'} | {_shown(rest)} |")
        lines += ["", "| measured | numbers |", "|---|---|"]
        lines += [f"| {name} | {_shown(facts)} |" for name, facts in self.speeds.items()]
        lines += ["", f"Left out: {', '.join(self.left_out) or 'nothing'}."]
        return "\n".join(lines) + "\n"


def _shown(facts: dict[str, Any]) -> str:
    return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in facts.items())


def _callers() -> str:
    """Return the two innermost lines of the package on the stack."""
    frame, lines = sys._getframe(2), []
    while frame is not None and len(lines) < 2:
        path = frame.f_code.co_filename
        if "/titokctl/" in path:
            lines.append(f"{path.split('/titokctl/')[-1]}:{frame.f_lineno}")
        frame = frame.f_back  # type: ignore[assignment]
    return " < ".join(lines)
