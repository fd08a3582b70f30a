"""Images a second of `titokctl tokenize` by Ray, beside torchrun with as many processes.

    python -m benchmarks.engines [--processes 2] [--shards 40] [--rounds 3] [--address HOST:PORT]
        [--encoder small|titok-s-128] [--device cpu|cuda] [--quick] [--json out.json]

Both engines make the same cache of the same shards, in turns, each by the command as users start it. The rates compared
are those at which parts appear once every process has had its first ones, so that starting Python, loading weights and
starting a Ray cluster do not count; the seconds of the whole command are printed, too. By default the encoder is small,
so that a unit takes about a second and the engine's own work shows; with titok-s-128 it has the sizes of the smallest
released one, so that a unit takes as long as in use. Weights are random. Needs the extra ray.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path

from benchmarks.measuring import parser, report_numbers
from benchmarks.preprocess import write_pictures
from benchmarks.tokenize import tokenizer, write_shard
from titokctl.formats.token_cache import TokenCache

PER_SHARD = 64
ENCODERS = {  # image size; width, layers, heads; latent tokens
    "small": (128, (256, 6, 4), 32),
    "titok-s-128": (256, (512, 8, 8), 128),
}
_FIRST_PARTS = 2  # of each process, which are left out


def main() -> None:
    """Measure and print."""
    made = parser(__doc__)
    made.add_argument("--processes", type=int, default=2)
    made.add_argument("--shards", type=int, help=f"of {PER_SHARD} images (default: 40, or 10 with --quick)")
    made.add_argument("--encoder", choices=ENCODERS, default="small")
    made.add_argument("--address", help="of a running Ray cluster (default: each command starts its own)")
    made.add_argument("--rounds", type=int, help="default: 3, or 1 with --quick")
    given = made.parse_args()
    count, rounds = given.shards or (10 if given.quick else 40), given.rounds or (1 if given.quick else 3)
    engines = {
        "torchrun": [f"--{'gpus' if given.device == 'cuda' else 'procs'}", str(given.processes)],
        "ray": ["--engine", "ray", *(f"--{end}-workers={given.processes}" for end in ("min", "max"))],
    }
    if given.address:
        engines["ray"] += ["--address", given.address]
    rates: dict[str, list[float]] = {name: [] for name in engines}
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    loads = []
    with tempfile.TemporaryDirectory(prefix="engines-") as folder:
        root = Path(folder)
        _write_inputs(root, count, given.encoder)
        for number in range(rounds):
            order = list(engines) if number % 2 else list(reversed(engines))
            for name in order:
                output = root / f"{name}-{number}"
                seconds[name].append(_seconds(root, output, engines[name], given))
                rates[name].append(_rate(output, _FIRST_PARTS * given.processes))
                loads.append(os.getloadavg()[0])
        sums = {TokenCache.open(root / f"{name}-0").sha256 for name in engines}
    if len(sums) > 1:
        raise SystemExit("the engines made different caches")
    ratios = [ours / baseline for ours, baseline in zip(rates["ray"], rates["torchrun"], strict=True)]
    found: dict[str, object] = {f"{name}_images_per_second": statistics.median(rates[name]) for name in engines}
    found |= {f"{name}_seconds_of_the_command": statistics.median(seconds[name]) for name in engines}
    found |= {"ray_over_torchrun": statistics.median(ratios), "of_each_round": [round(one, 3) for one in ratios]}
    facts = {
        "encoder": given.encoder,
        "processes": given.processes,
        "images": count * PER_SHARD,
        "load": f"{min(loads):.1f} to {max(loads):.1f}",
    }
    report_numbers("engines: files to a cache", given, found, **facts)


def _write_inputs(root: Path, count: int, encoder: str) -> None:
    (root / "shards").mkdir()
    (root / "pictures").mkdir()
    images = [path.read_bytes() for path in write_pictures(root / "pictures", PER_SHARD)]
    for shard in range(count):
        numbers = range(shard * PER_SHARD, (shard + 1) * PER_SHARD)
        write_shard(root / "shards" / f"{shard:03d}.tar", images, numbers, "jpg")
    size, widths, tokens = ENCODERS[encoder]
    tokenizer(root / "tokenizer.safetensors", size, 16, widths, tokens)


def _seconds(root: Path, output: Path, engine: list[str], given: Namespace) -> float:
    """Run the command into the folder `output`; return its seconds."""
    words = ["tokenize", str(root / "shards"), "-o", f"{output}/", "--tokenizer", str(root / "tokenizer.safetensors")]
    words += ["--views", "none", "--device", given.device, "--quiet", *engine]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "titokctl", *words], check=True, env=environment, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def _rate(output: Path, first: int) -> float:
    """Return images a second, by the times at which parts were written, without the `first` ones."""
    times = sorted(path.stat().st_mtime for path in output.glob("unit-*"))
    return (len(times) - first) * PER_SHARD / (times[-1] - times[first - 1])


if __name__ == "__main__":
    main()
