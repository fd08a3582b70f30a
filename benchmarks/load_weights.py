"""Time and memory of loading TiTok-L-32 (641M parameters) to the CPU, beside reading its file.

    python benchmarks/load_weights.py [--official] [--folder /tmp]

Writes a file of random weights, then reads and loads it in fresh processes, three times each. It was just written, so
both come from the page cache. Prints seconds, peak resident memory and the two ratios.
"""

import argparse
import json
import multiprocessing
import subprocess
import sys
import tempfile
from pathlib import Path

_READ = """
buffer = bytearray(16 << 20)
with open(path, "rb", buffering=0) as file:
    while file.readinto(buffer):
        pass
"""
_LOAD = "load_tokenizer(path)"
_HARNESS = """
import json, resource, sys, time
from pathlib import Path
from titokctl.weights.load import load_tokenizer
path = Path(sys.argv[1])
began = time.perf_counter()
{work}
seconds = time.perf_counter() - began
print(json.dumps({{"seconds": seconds, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}}))
"""


def make(path: Path, official: bool) -> None:
    """Write TiTok-L-32 with random weights, in our layout or in the official one."""
    import torch

    from titokctl.weights.build import shapes, skeleton
    from titokctl.weights.known import BY_NAME
    from titokctl.weights.official.files import write_official
    from titokctl.weights.store import Weights, save

    config = BY_NAME["titok-l-32"].config
    needed = shapes(skeleton("tokenizer", config).state_dict())
    weights = Weights("tokenizer", config, {name: torch.randn(shape) for name, shape in needed.items()})
    if official:
        write_official(path, weights)
    else:
        save(path, weights)


def measure(work: str, path: Path) -> dict[str, float]:
    """Seconds and peak memory of `work` in a process of its own; the best of three."""
    command = [sys.executable, "-c", _HARNESS.format(work=work), str(path)]
    runs = [json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(3)]
    return min(runs, key=lambda run: run["seconds"])


def main() -> None:
    """Measure and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--official", action="store_true")
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        path = Path(folder) / ("l32" if given.official else "l32.safetensors")
        # In a process of its own: children inherit their parent's peak.
        maker = multiprocessing.get_context("spawn").Process(target=make, args=(path, given.official))
        maker.start()
        maker.join()
        file = path / "model.safetensors" if given.official else path
        size = file.stat().st_size
        read, load = measure(_READ, file), measure(_LOAD, path)
    ratios = {"time_ratio": load["seconds"] / read["seconds"], "memory_ratio": load["peak"] / size}
    print(json.dumps({"bytes": size, "read": read, "load": load, **ratios}))


if __name__ == "__main__":
    main()
