"""One acceptance run on a machine with one CUDA GPU: is it right, does all of it run, how fast is it.

    python -m benchmarks.gpu_check [--out gpu_check] [--budget 480] [--only env,equal,...]
    python -m benchmarks.gpu_check --quick --device cpu     # tries the run itself, without a GPU

Sections run in order; one that no longer fits into the budget is left out and named. After each, FOLDER/gpu_check.json
and gpu_check.md are written anew; profiles.txt has the kernels of the hot loops. Exit code 1 when a check fails.
Weights are arbitrary, pictures are drawn here; nothing is downloaded.

    section    s   what                                             fails when
    env       10   versions and measured peaks
    kernels    5   the Triton kernels                               they don't compile, or differ from torch's
    equal     60   ids, pixels, logits and samples beside the       they differ by more than the precision allows;
                   CPU's; tiles of 1 and 37 as among 512            tiles are not byte-equal
    nccl      15   all collectives, in one process                  one is wrong
    stages   120   five stages, 6 + 6 against 12 steps, plain and   deterministic ones differ at all, plain ones by
                   deterministic; both generators                   more than a tenth; losses differ from the CPU's
    commands  50   the whole chain by its command line              exit codes; 70 samples are not the first of 100
    encode    20   L-32 in each precision; the price of tiles
    sample    20   ids and pixels; 50,000 by proportion             ids of a CUDA graph are others
    features  20   Inception alone and through the pass of `fid`
    train    100   L-32 and S-128's generators, compiled
    attention 10   each of torch's kernels at these lengths
    whole     50   `sample` and `tokenize` as processes

The seconds are estimates for an H200 with 16 cores. The page begins with the goals of benchmarks/gpu/goals.py.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# cuBLAS looks once, at its first product; deterministic training needs this value.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch

from benchmarks.gpu import equality, runs, speed
from benchmarks.gpu.record import Record

# Function, and the seconds that must be left when it begins.
SECTIONS: dict[str, tuple[Callable[[Record], None], float]] = {
    "env": (equality.env, 10),
    "kernels": (equality.kernels, 10),
    "equal": (equality.equal, 60),
    "nccl": (runs.nccl, 20),
    "stages": (runs.stages, 100),
    "commands": (runs.commands, 90),
    "encode": (speed.encode, 20),
    "sample": (speed.sample, 20),
    "features": (speed.features, 20),
    "train": (speed.train, 90),
    "attention": (speed.attention, 10),
    "whole": (speed.whole, 45),
}


def main() -> int:
    """Run the sections that the command line asks for. Returns the exit code."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, default=Path("gpu_check"), help="folder of the results")
    made.add_argument("--budget", type=float, default=480, help="seconds in all")
    made.add_argument("--only", default=",".join(SECTIONS), help="sections, separated by commas")
    made.add_argument("--quick", action="store_true", help="tiny sizes")
    made.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    given = made.parse_args()
    wanted, began = given.only.split(","), time.monotonic()
    if unknown := set(wanted) - set(SECTIONS):
        made.error(f"unknown sections: {', '.join(sorted(unknown))}; known: {', '.join(SECTIONS)}")
    if given.device == "cuda" and not torch.cuda.is_available():
        made.error("no CUDA device; `--quick --device cpu` tries the run itself")
    os.environ.update(TITOKCTL_OFFLINE="1", HF_HUB_OFFLINE="1")
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gpu_check-") as work:
        record = Record(given.out.absolute(), Path(work), given.device, given.quick)
        for name in SECTIONS:  # all speeds are shares of what "env" measures
            if name not in (*wanted, "env"):
                continue
            run, least = SECTIONS[name]
            left = given.budget - (time.monotonic() - began)
            if left < least:
                record.left_out.append(name)
                print(f"left out: {name} ({left:.0f} s left, {least:.0f} needed)", flush=True)
                continue
            print(f"== {name} ({left:.0f} s left)", flush=True)
            entered = time.monotonic()
            with record.part(name):
                run(record)
            record.seconds[name] = time.monotonic() - entered
            record.write()
    record.write()
    count = len(record.checks)
    print(f"{count - len(record.failed)} of {count} checks hold; failed: {', '.join(record.failed) or 'none'}")
    return 1 if record.failed else 0


if __name__ == "__main__":
    sys.exit(main())
