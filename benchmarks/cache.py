"""Time and memory of writing, merging, opening, checking and inspecting token caches, beside plain NumPy files.

    python -m benchmarks.cache --quick      # 1,281,167 rows of 32 ids in 2 views
    python -m benchmarks.cache              # and 10,000,000 rows

Random ids in parts of 1,024 rows, as `titokctl tokenize` writes them. Each step runs in a process of its own, which
gives its peak resident memory (pages of memory-mapped files included). `np.save` of the same arrays with fsync is the
baseline of writing, `np.load` that of opening. Prints a line of JSON a step.
"""

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

IMAGENET, MANY = 1_281_167, 10_000_000
TOKENS, CODES, UNIT = 32, 4096, 1024


def header() -> "object":
    """The header of a cache with one further view."""
    from titokctl.formats.token_header import CacheHeader

    return CacheHeader(
        tokenizer={},
        encoder_sha256="e" * 64,
        weights_sha256="f" * 64,
        codebook_size=CODES,
        num_latent_tokens=TOKENS,
        image_size=256,
        preprocessing={"size": 256},
        source={"kind": "benchmark"},
        views={"flip": {"flip": True}},
        class_names=tuple(f"n{c:08d}" for c in range(1000)),
    )


def write_parts(folder: Path, rows: int) -> float:
    """A part for every 1,024 rows, each flushed to the disk. Returns the seconds without making up the rows."""
    from titokctl.formats.token_parts import PartsFolder, TokenPart

    parts = PartsFolder(folder / "tokens.h5")
    parts.path.mkdir()
    seconds = 0.0
    rng = np.random.default_rng(0)
    ids = rng.integers(0, CODES, (UNIT, TOKENS), np.uint16)
    for unit, first in enumerate(range(0, rows, UNIT)):
        n = min(UNIT, rows - first)
        keys = np.array([f"n{i // 1300:08d}/n{i // 1300:08d}_{i % 1300}".encode() for i in range(first, first + n)])
        labels = (np.arange(first, first + n) // 1300 % 1000).astype(np.int32)
        block = np.roll(ids[:n], unit, axis=1)
        part = TokenPart(unit, first, n, f"unit {unit}", block, labels, keys, {"flip": block[:, ::-1]})
        began = time.perf_counter()
        parts.write(part)
        seconds += time.perf_counter() - began
    return seconds


def merge_parts(folder: Path, rows: int) -> None:
    """The parts as one file."""
    from titokctl.formats.token_merge import Tally, merge, summaries
    from titokctl.formats.token_parts import PartsFolder

    parts, units, tally = PartsFolder(folder / "tokens.h5"), -(-rows // UNIT), Tally()
    for summary in summaries(parts, units):
        tally.add(summary)
    merge(parts, header(), units, tally, lambda n: None)  # type: ignore[arg-type]


def save_plain(folder: Path, rows: int) -> None:
    """The same numbers of bytes by np.save, flushed."""
    for name in ("plain", "flip"):
        with (folder / f"{name}.npy").open("wb") as file:
            np.save(file, np.zeros((rows, TOKENS), np.uint16))
            file.flush()
            os.fsync(file.fileno())


def open_cache(folder: Path, rows: int) -> None:
    """Open, check all ids, and load ids and labels."""
    from titokctl.formats.token_cache import TokenCache

    cache = TokenCache.open(folder / "tokens.h5")
    assert np.array(cache.ids).shape == (rows, TOKENS)
    assert np.array(cache.labels).shape == (rows,)


def load_plain(folder: Path, rows: int) -> None:
    """The ids by np.load."""
    assert np.load(folder / "plain.npy", allow_pickle=False).shape == (rows, TOKENS)


def inspect_cache(folder: Path, rows: int) -> None:
    """What `titokctl inspect` does."""
    from titokctl.jobs.inspect import inspect

    assert inspect(folder / "tokens.h5").facts["rows"] == rows


def verify_cache(folder: Path, rows: int) -> None:
    """What `titokctl verify` does."""
    from titokctl.distributed.stop import StopRequest
    from titokctl.jobs.verify import verify
    from titokctl.progress import SilentProgress

    result = verify(folder / "tokens.h5", progress=SilentProgress(), stop=StopRequest())
    assert (result.rows, result.problems) == (rows, [])


def join_caches(folder: Path, rows: int) -> None:
    """What `titokctl merge` does with two caches of these rows."""
    from titokctl.distributed.stop import StopRequest
    from titokctl.jobs.merge import merge
    from titokctl.progress import SilentProgress

    paths = [folder / "tokens.h5"] * 2
    assert merge(paths, folder / "two.h5", progress=SilentProgress(), stop=StopRequest()).rows == 2 * rows


STEPS: dict[str, Callable[[Path, int], float | None]] = {
    "write parts": write_parts,
    "merge parts": merge_parts,
    "np.save": save_plain,
    "open and load": open_cache,
    "np.load": load_plain,
    "inspect": inspect_cache,
    "verify": verify_cache,
    "merge two caches": join_caches,
}
_IMPORTS = ("titokctl.formats.token_merge", "titokctl.formats.token_cache", "titokctl.jobs.inspect",
            "titokctl.jobs.verify", "titokctl.jobs.merge")  # fmt: skip
_QUICK = ("write parts", "merge parts", "np.save", "open and load", "np.load")


def run_step(name: str, folder: Path, rows: int, results: "multiprocessing.Queue[dict]") -> None:
    """Run one step after its imports and report seconds and peak memory."""
    for module in _IMPORTS[:2] if name in _QUICK else _IMPORTS:
        __import__(module)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    own = STEPS[name](folder, rows)
    seconds = time.perf_counter() - began if own is None else own
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    results.put({"seconds": round(seconds, 3), "peak_mib": round(peak / 1024), "imports_mib": round(before / 1024)})


def measure(rows: int, names: tuple[str, ...], place: Path | None) -> dict[str, dict]:
    """Run the steps for caches of `rows` rows."""
    context, measured = multiprocessing.get_context("spawn"), {}
    folder = Path(tempfile.mkdtemp(dir=place))
    try:
        for name in names:
            results: multiprocessing.Queue[dict] = context.Queue()
            process = context.Process(target=run_step, args=(name, folder, rows, results))
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(f"{name} failed")
            measured[name] = results.get()
            print(json.dumps({"rows": rows, "step": name} | measured[name]), flush=True)
    finally:
        shutil.rmtree(folder)
    return measured


def main() -> None:
    """Measure, then print the ratios to the baselines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only the size of ImageNet")
    parser.add_argument("--folder", type=Path, help="where to write (default: the system's temporary folder)")
    given = parser.parse_args()
    found = measure(IMAGENET, _QUICK, given.folder)
    write = found["write parts"]["seconds"] + found["merge parts"]["seconds"]
    summary = {
        "write_and_merge_seconds": round(write, 2),
        "write_and_merge_to_np_save": round(write / found["np.save"]["seconds"], 1),
        "open_and_load_seconds": found["open and load"]["seconds"],
        "open_and_load_to_np_load": round(found["open and load"]["seconds"] / found["np.load"]["seconds"], 1),
        "peak_mib": max(step["peak_mib"] for step in found.values()),
    }
    print(json.dumps(summary))
    if not given.quick:
        measure(MANY, tuple(STEPS), given.folder)


if __name__ == "__main__":
    main()
