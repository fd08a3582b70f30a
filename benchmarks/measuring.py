"""What the benchmarks share: flags, alternate measuring, the device's peaks, counts of operations, one table.

Ways of doing the same thing are run in turns, and so are a large matrix product and a large copy: where other work is
done beside it, the median of the rounds' ratios still means something, when absolute times don't.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from titokctl.models.device import best_device
from titokctl.models.precision import Precision, low_dtype

BASELINE = "baseline"
Network = TypeVar("Network", bound=nn.Module)
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
    """

    run: Callable[[], object]
    precision: Precision = "float32"
    operations: float | None = None
    bytes: float | None = None
    weights: int | None = None


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


def compare(ways: Mapping[str, Way], device: str, repeats: int) -> dict[str, Figures]:
    """Measure `ways` in turns; the one called "baseline" is what the others are compared with.

    Large matrix products and copies, measured in the same turns, are there as "peak float32", "peak bf16", "peak copy".
    """
    with torch.inference_mode():
        calls = {name: way.run for name, way in ways.items()} | _peak_calls(device, ways)
        rounds = _in_turns(calls, device, repeats)
    peaks = {f"peak {_type_name(way.precision)}": 2.0 * _SIDE[device] ** 3 for way in ways.values()}
    found = {}
    for name, times in rounds.items():
        way = ways.get(name) or Way(calls[name], operations=peaks.get(name), bytes=_copied(name, device))
        peak = f"peak {_type_name(way.precision)}"
        compared = name in ways and name != BASELINE and BASELINE in ways
        found[name] = Figures(
            seconds=statistics.median(wall for wall, _ in times),
            quartiles=_quartiles([wall for wall, _ in times]),
            processor_seconds=statistics.median(processor for _, processor in times),
            times_as_fast=_ratio(rounds, name, 0) if compared else None,
            times_less_processor=_ratio(rounds, name, 1) if compared and device == "cpu" else None,
            gflop=way.operations and way.operations / 1e9,
            gbyte=way.bytes and way.bytes / 1e9,
            share_of_peak=_share(rounds, name, way, peak, device) if name in ways and way.operations else None,
            weights_mib=None if way.weights is None else way.weights >> 20,
        )
    return found


def _in_turns(calls: Mapping[str, Callable[[], object]], device: str, repeats: int) -> dict[str, list[Any]]:
    """(wall, processor) seconds of each call in each of `repeats` rounds, after one that does not count."""
    rounds: dict[str, list[Any]] = {name: [] for name in calls}
    for number in range(repeats + 1):
        for name, call in calls.items():
            synchronize(device)
            began, processor = time.perf_counter(), _processor_seconds()
            call()
            synchronize(device)
            if number:
                rounds[name].append((time.perf_counter() - began, _processor_seconds() - processor))
    return rounds


def _processor_seconds() -> float:
    """Of this process, all its threads, and its finished children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


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


def _ratio(rounds: Mapping[str, list[Any]], name: str, clock: int) -> float:
    return statistics.median(b[clock] / o[clock] for b, o in zip(rounds[BASELINE], rounds[name], strict=True))


def _share(rounds: Mapping[str, list[Any]], name: str, way: Way, peak: str, device: str) -> float:
    clock = 1 if device == "cpu" else 0
    assert way.operations is not None
    amount = way.operations / (2.0 * _SIDE[device] ** 3)
    return statistics.median(amount * p[clock] / o[clock] for p, o in zip(rounds[peak], rounds[name], strict=True))


def _copied(name: str, device: str) -> float | None:
    return 2.0 * _COPY_BYTES[device] if name == "peak copy" else None


def _quartiles(times: Sequence[float]) -> tuple[float, float]:
    if len(times) < 2:
        return times[0], times[0]
    low, _, high = statistics.quantiles(times, n=4, method="inclusive")
    return low, high


def counted(run: Callable[[], object]) -> dict[str, float]:
    """`operations` (multiplications and additions of products, convolutions and attention) and `bytes` of `run`.

    Bytes are those of all tensors that go into an operation or come out of it, as if nothing stayed in a cache. Nothing
    is computed: `run` works on fake tensors, so it must not look at values.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    # torch counts the attention kernels of GPUs only.
    attention = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_operations}
    flops, traffic = FlopCounterMode(display=False, custom_mapping=attention), _Bytes()
    with torch.inference_mode(), fake, flops, traffic:
        run()
    return {"operations": float(flops.get_total_flops()), "bytes": float(traffic.total)}


def _attention_operations(q: Any, k: Any, v: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return sdpa_flop_count(q, k, v)


class _Bytes(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = torch.utils._pytree.tree_leaves((args, kwargs, out))
            self.total += sum(t.nbytes for t in tensors if isinstance(t, torch.Tensor))
        return out


def fill(module: Network) -> Network:
    """Quick arbitrary weights of the usual size, in place: norms 1, biases 0, the rest by fan-in; frozen."""
    block = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.zero_()
                continue
            flat, scale = parameter.view(-1), max(1, parameter[0].numel()) ** -0.5
            for start in range(0, flat.numel(), len(block)):
                part = flat[start : start + len(block)]
                torch.mul(block[: len(part)], scale, out=part)
        for part in module.modules():
            if isinstance(part, nn.LayerNorm | nn.GroupNorm):
                part.reset_parameters()
    return module.requires_grad_(False).eval()


def weight_bytes(*modules: nn.Module) -> int:
    """Bytes of all parameters of the modules, shared ones once."""
    return sum({p.data_ptr(): p.nbytes for module in modules for p in module.parameters()}.values())


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
    facts = {**environment(given.device), **facts, "peak_memory_mib": _peak_memory(given.device)}
    print(title)
    print("  " + ", ".join(f"{name} {value}" for name, value in facts.items()))
    names = ("", "seconds", "quartiles", "x baseline", "proc. s", "x baseline", "GFLOP", "GB", "GFLOP/s", "of peak")
    rows = [(*names, "weights"), *(_row(name, one) for name, one in found.items())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *cells in rows:
        print("  ".join([first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells, widths[1:], strict=True))]))
    if given.json:
        values = {"what": title, "facts": facts, "figures": {name: asdict(one) for name, one in found.items()}}
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
    )


def _peak_memory(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() >> 20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def synchronize(device: str) -> None:
    """Wait for a GPU."""
    if device == "cuda":
        torch.cuda.synchronize()
