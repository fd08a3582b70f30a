"""What the benchmarks share: flags, alternate measuring, the device's peaks, one table.

Ways of doing the same thing are run in turns, and so are a large matrix product and a large copy: where other work is
done beside it, the median of the rounds' ratios still means something, when absolute times don't.
"""

import argparse
import contextlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from titokctl.models.device import best_device
from titokctl.models.precision import Precision, low_dtype

BASELINE = "baseline"
Result = TypeVar("Result")
_SIDE = {"cpu": 2048, "cuda": 8192}
_COPY_BYTES = {"cpu": 128 << 20, "cuda": 1 << 30}


def parser(description: str | None, models: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The flags of every benchmark."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--device", default=best_device(), choices=("cpu", "cuda"))
    if models:
        made.add_argument("--model", default=models[0], choices=models)
        made.add_argument("--batch-size", type=int, help="images at once (default: 8 on a CPU, 128 on a GPU)")
    made.add_argument("--quick", action="store_true", help="fewer repeats and a smaller batch")
    made.add_argument("--json", type=Path, metavar="FILE", help="also write what was measured to FILE")
    return made


def default_batch(given: argparse.Namespace) -> int:
    """The batch size asked for, or the usual one of the device."""
    size: int = given.batch_size or {"cpu": 2 if given.quick else 8, "cuda": 128}[given.device]
    return size


@dataclass(frozen=True)
class Way:
    """One way of doing the thing measured.

    Args:
        run: does it once.
        precision: of its arithmetic; decides which peak it is compared with.
        operations, bytes: of one run, by count; None where nobody counted.
        weights: bytes of its weights.
        beside: the way it is compared with.
        before: done before each run, outside the time.
        items: images or rows of one run.
    """

    run: Callable[[], object]
    precision: Precision = "float32"
    operations: float | None = None
    bytes: float | None = None
    weights: int | None = None
    beside: str = BASELINE
    before: Callable[[], object] = lambda: None
    items: int | None = None


class Parts(dict[str, tuple[float, float]]):
    """What a way's run returns when it times parts of itself; they get rows of their own below it."""

    def time(self, name: str, device: str, call: Callable[[], Result]) -> Result:
        """Do `call` as the part `name`."""
        synchronize(device)
        began, processor = time.perf_counter(), _processor_seconds()
        found = call()
        synchronize(device)
        self[f"  {name}"] = time.perf_counter() - began, _processor_seconds() - processor
        return found


@dataclass(frozen=True)
class Figures:
    """What was found for one way: medians of seconds a run with their quartiles, and of processor time (all threads).

    The two ratios to the baseline are medians of the rounds' ratios. On a CPU the share of the peak is one of processor
    time: what other programs take of the cores says nothing about ours.
    """

    seconds: float
    quartiles: tuple[float, float]
    processor_seconds: float
    times_as_fast: float | None = None
    times_less_processor: float | None = None
    gflop: float | None = None
    gbyte: float | None = None
    share_of_peak: float | None = None
    weights_mib: int | None = None
    items_per_second: float | None = None


def compare(ways: Mapping[str, Way], device: str, repeats: int, training: bool = False) -> dict[str, Figures]:
    """Measure `ways` in turns; each is compared with the one it is `beside`.

    Large matrix products and copies, measured in the same turns, are there as "peak float32", "peak bf16", "peak copy".
    """
    with torch.inference_mode(not training):
        calls = {name: way.run for name, way in ways.items()} | _peak_calls(device, ways)
        rounds = _in_turns(calls, ways, device, repeats)
    peaks = {f"peak {_type_name(way.precision)}": 2.0 * _SIDE[device] ** 3 for way in ways.values()}
    found = {}
    for name, times in rounds.items():
        way = ways.get(name) or Way(_nothing, operations=peaks.get(name), bytes=_copied(name, device))
        peak = f"peak {_type_name(way.precision)}"
        compared = name in ways and name != way.beside and way.beside in ways
        seconds = statistics.median(wall for wall, _ in times)
        found[name] = Figures(
            seconds=seconds,
            quartiles=_quartiles([wall for wall, _ in times]),
            processor_seconds=statistics.median(processor for _, processor in times),
            times_as_fast=_ratio(rounds[way.beside], times, 0) if compared else None,
            times_less_processor=_ratio(rounds[way.beside], times, 1) if compared and device == "cpu" else None,
            gflop=way.operations and way.operations / 1e9,
            gbyte=way.bytes and way.bytes / 1e9,
            share_of_peak=_share(rounds, name, way, peak, device) if name in ways and way.operations else None,
            weights_mib=None if way.weights is None else way.weights >> 20,
            items_per_second=way.items and way.items / seconds,
        )
    return found


def _in_turns(
    calls: Mapping[str, Callable[[], object]], ways: Mapping[str, Way], device: str, repeats: int
) -> dict[str, list[Any]]:
    """(wall, processor) seconds of each call and its parts in `repeats` rounds, after one that does not count."""
    rounds: dict[str, list[Any]] = {}
    for number in range(repeats + 1):
        for name, call in calls.items():
            if name in ways:
                ways[name].before()
            whole = Parts()
            parts = whole.time(name, device, call)
            if number:
                rounds.setdefault(name, []).append(whole[f"  {name}"])
                for part, spent in parts.items() if isinstance(parts, Parts) else ():
                    rounds.setdefault(part, []).append(spent)
    return rounds


def _nothing() -> None:
    pass


def _processor_seconds() -> float:
    """Of this process, all its threads, and its children, of those that still run to a hundredth of a second."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    ticks = 0
    for children in Path("/proc/self/task").glob("*/children"):
        for child in children.read_text().split():
            with contextlib.suppress(OSError):  # it may have ended
                ticks += sum(map(int, Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()[11:13]))
    return sum(one.ru_utime + one.ru_stime for one in used) + ticks / os.sysconf("SC_CLK_TCK")


def _peak_calls(device: str, ways: Mapping[str, Way]) -> dict[str, Callable[[], object]]:
    side = _SIDE[device]
    matrix = torch.randn(side, side, device=device)
    calls: dict[str, Callable[[], object]] = {}
    for name in dict.fromkeys(way.precision for way in ways.values()):
        factor = matrix.to(low_dtype(name) or torch.float32)
        out = torch.empty_like(factor)
        calls[f"peak {_type_name(name)}"] = lambda f=factor, o=out: torch.mm(f, f, out=o)  # type: ignore[misc]
    source = torch.zeros(_COPY_BYTES[device], dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    calls["peak copy"] = lambda: target.copy_(source)
    return calls


def _type_name(precision: Precision) -> str:
    return "float32" if low_dtype(precision) is None else precision


def _ratio(baseline: Sequence[Any], ours: Sequence[Any], clock: int) -> float:
    return statistics.median(b[clock] / max(o[clock], 1e-9) for b, o in zip(baseline, ours, strict=True))


def _share(rounds: Mapping[str, list[Any]], name: str, way: Way, peak: str, device: str) -> float:
    clock = 1 if device == "cpu" else 0
    assert way.operations is not None
    amount = way.operations / (2.0 * _SIDE[device] ** 3)
    return statistics.median(
        amount * p[clock] / max(o[clock], 1e-9) for p, o in zip(rounds[peak], rounds[name], strict=True)
    )


def _copied(name: str, device: str) -> float | None:
    return 2.0 * _COPY_BYTES[device] if name == "peak copy" else None


def _quartiles(times: Sequence[float]) -> tuple[float, float]:
    if len(times) < 2:
        return times[0], times[0]
    low, _, high = statistics.quantiles(times, n=4, method="inclusive")
    return low, high


def environment(device: str) -> dict[str, object]:
    """Where it was measured."""
    return {
        "command": f"python -m benchmarks.{Path(sys.argv[0]).stem} {' '.join(sys.argv[1:])}".strip(),
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def report(title: str, given: argparse.Namespace, found: Mapping[str, Figures], **facts: object) -> None:
    """Print the table and write the JSON file that was asked for."""
    facts = _head(title, given, facts)
    names = ("", "seconds", "quartiles", "x baseline", "proc. s", "x baseline", "GFLOP", "GB", "GFLOP/s", "of peak")
    rows = [(*names, "weights", "items/s"), *(_row(name, one) for name, one in found.items())]
    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    for first, *cells in zip(*columns, strict=True):
        print("  ".join([first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells, widths[1:], strict=True))]))
    _write(title, given, facts, {name: asdict(one) for name, one in found.items()})


def report_numbers(title: str, given: argparse.Namespace, found: Mapping[str, object], **facts: object) -> None:
    """The same for what is no comparison of times: a line for each number."""
    facts = _head(title, given, facts)
    for name, value in found.items():
        print(f"{name:40} {value:.5g}" if isinstance(value, float) else f"{name:40} {value}")
    _write(title, given, facts, found)


def _head(title: str, given: argparse.Namespace, facts: dict[str, object]) -> dict[str, object]:
    facts = {**environment(given.device), **facts, "peak_memory_mib": _peak_memory(given.device)}
    print(title)
    print("  " + ", ".join(f"{name} {value}" for name, value in facts.items()))
    return facts


def _write(title: str, given: argparse.Namespace, facts: object, figures: object) -> None:
    if given.json:
        values = {"what": title, "facts": facts, "figures": figures}
        given.json.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def _row(name: str, one: Figures) -> tuple[str, ...]:
    def shown(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    return (
        name,
        f"{one.seconds:.4g}",
        f"{one.quartiles[0]:.4g}..{one.quartiles[1]:.4g}",
        shown(one.times_as_fast, ".2f"),
        f"{one.processor_seconds:.4g}",
        shown(one.times_less_processor, ".2f"),
        shown(one.gflop, ".0f"),
        shown(one.gbyte, ".2f"),
        shown(one.gflop and one.gflop / one.seconds, ".0f"),
        shown(one.share_of_peak, ".0%"),
        "" if one.weights_mib is None else f"{one.weights_mib} MiB",
        shown(one.items_per_second, ".4g"),
    )


def peak_memory_of(code: str, *words: object) -> int:
    """Bytes that a process of its own holds at most while it runs this Python code."""
    # Not ru_maxrss, which begins with what the parent held.
    code += "\nprint(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1])"
    command = [sys.executable, "-c", code, *map(str, words)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1]) << 10


def _peak_memory(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() >> 20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def synchronize(device: str) -> None:
    """Wait for a GPU."""
    if device == "cuda":
        torch.cuda.synchronize()
