"""What `titokctl fid` costs: features beside the bare network, statistics, the trace; and what --fast does to numbers.

    python -m benchmarks.fid                          # Inception at full size, random weights: speed asks for no others
    python -m benchmarks.fid --quick --json           # fewer images
    python -m benchmarks.fid --device cuda            # on a GPU
    python -m benchmarks.fid --what deviation         # float32 beside bf16, on the Earth tiles

Speed: the whole way of `titokctl stats` (an .npz on the disk -> features -> sums) and the bare network on batches that
are ready, alternately in this run; medians. On a CPU that others use, too, processor time is the measure that means
something: both are printed. The trace is that of two covariances of 2,048 features; the baseline for it and for the
sums is one float64 matrix product of the same size in the same run.

Deviation: lite0 has its published weights; Inception, whose weights are not here, has the weights of the formula that
the tests compare it by (tests/golden.py), so its figures tell about the arithmetic and not about FIDs.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from titokctl.data.earth import earth_tiles
from titokctl.distributed.stop import StopRequest
from titokctl.errors import UserError
from titokctl.evaluation.extractors import Extractor, ExtractorOptions, inception_extractor, open_extractor
from titokctl.evaluation.features import extract_all
from titokctl.evaluation.frechet import GaussianSums, frechet_distance, gaussian_of, trace_of_root
from titokctl.evaluation.kernel_distance import kernel_distance
from titokctl.jobs.feature_pass import KEEP_OF_SAMPLES, measure
from titokctl.jobs.image_sets import from_npz
from titokctl.models import inception
from titokctl.models.device import best_device
from titokctl.models.inception import Inception
from titokctl.progress import SilentProgress
from titokctl.weights.feature_networks import inception_from

ROOT = Path(__file__).resolve().parents[1]
SIZE, WIDTH = 256, 2048
Timed = dict[str, float]


def main() -> None:
    """Measure what the command line asks for and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=("speed", "deviation"), default="speed")
    parser.add_argument("--device", default=best_device())
    parser.add_argument("--quick", action="store_true", help="fewer images and rounds")
    parser.add_argument("--json", action="store_true")
    words = parser.parse_args()
    found: dict[str, object] = {"threads": torch.get_num_threads(), "torch": torch.__version__, "device": words.device}
    if words.what == "deviation":
        found |= deviation(words.device, 24 if words.quick else 160)
    else:
        found |= features(words.device, words.quick) | sums(words.quick) | trace(words.quick)
    print(json.dumps(found) if words.json else "\n".join(f"{k:40} {shown(v)}" for k, v in found.items()))


def features(device: str, quick: bool) -> dict[str, object]:
    """Images a second of the whole way, and its share of the bare network's."""
    torch.manual_seed(0)
    extractor = inception_extractor(Inception().eval().requires_grad_(False), ExtractorOptions(device))
    count = extractor.batch_size * (4 if quick else 12 if device == "cpu" else 60)
    pixels = np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)
    batches = [torch.from_numpy(pixels[i : i + extractor.batch_size]) for i in range(0, count, extractor.batch_size)]
    with tempfile.TemporaryDirectory() as folder, StopRequest() as stop:
        np.savez(Path(folder) / "images.npz", pixels)
        images = from_npz(Path(folder) / "images.npz")

        def one(batch: torch.Tensor) -> torch.Tensor:
            with torch.inference_mode():
                return extractor.network(batch.to(device))["pool"]

        def bare() -> None:
            if device != "cpu":
                [one(batch) for batch in batches][-1].cpu()
                return
            threads = torch.get_num_threads()  # one batch each is the quickest way there is on a CPU
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                list(pool.map(one, batches))

        def whole() -> None:
            measure(images, extractor, KEEP_OF_SAMPLES, "images", SilentProgress(), stop)

        rows = alternately({"bare": bare, "whole": whole}, 1 if quick else 3)
    wall, cpu = (rows["bare"][k] / rows["whole"][k] for k in ("wall", "cpu"))
    return {
        "images": count,
        "features_per_s": count / rows["whole"]["wall"],
        "features_per_cpu_s": count / rows["whole"]["cpu"],
        "share_of_bare_network_by_the_clock": wall,
        "share_of_bare_network_by_cpu_time": cpu,
    }


def sums(quick: bool) -> dict[str, object]:
    """The float64 sums for mean and covariance, beside bare products of the same blocks."""
    rows = np.random.default_rng(0).random((1024, WIDTH), dtype=np.float32)
    ready = torch.from_numpy(rows).double()
    collected = GaussianSums(WIDTH)
    found = alternately({"bare": lambda: ready.T @ ready, "sums": lambda: collected.add(rows)}, 3 if quick else 9)
    return {
        "sums_images_per_cpu_s": len(rows) / found["sums"]["cpu"],
        "sums_share_of_bare_product": found["bare"]["cpu"] / found["sums"]["cpu"],
    }


def trace(quick: bool) -> dict[str, object]:
    """Seconds of the trace at 2,048 and how many bare products of that size it takes the time of."""
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((WIDTH, WIDTH)) * np.linspace(0.01, 1, WIDTH)
    a, b = (gaussian_of((rng.standard_normal((5000, WIDTH)) @ mixing).astype(np.float32)) for _ in range(2))
    x = torch.from_numpy(a.covariance)
    ways = {"product": lambda: x @ x, "trace": lambda: trace_of_root(a.covariance, b.covariance)}
    found = alternately(ways, 1 if quick else 3)
    return {
        "trace_s_by_the_clock": found["trace"]["wall"],
        "trace_cpu_s": found["trace"]["cpu"],
        "trace_in_bare_products": found["trace"]["cpu"] / found["product"]["cpu"],
        "product_gflops_per_cpu_s": 2 * WIDTH**3 / found["product"]["cpu"] / 1e9,
    }


def deviation(device: str, count: int) -> dict[str, object]:
    """How far bf16 moves features and distances between two sets of `count` Earth tiles."""
    first, second = tiles("train", count), tiles("heldout", count)
    found: dict[str, object] = {"images_a_set": count}
    for name, make in (("lite0", lambda o: open_extractor("lite0", o)), ("inception_by_formula", by_formula)):
        sets = {}
        for precision in ("float32", "bf16"):
            extractor = make(ExtractorOptions(device, precision=precision))  # type: ignore[arg-type]
            sets[precision] = [
                extract_all(extractor, [pixels])["pool"].astype(np.float64) for pixels in (first, second)
            ]
        (x, y), (u, v) = sets["float32"], sets["bf16"]
        exact, fast = (frechet_distance(gaussian_of(a), gaussian_of(b)) for a, b in ((x, y), (u, v)))
        kid, kid_fast = kernel_distance(x, y), kernel_distance(u, v)
        found |= {
            f"{name}_features_relative": float(np.linalg.norm(x - u) / np.linalg.norm(x)),
            f"{name}_fd": exact,
            f"{name}_fd_fast_relative": fast / exact - 1,
            f"{name}_fd_of_one_set_in_both": frechet_distance(gaussian_of(x), gaussian_of(u)),
            f"{name}_kid": kid,
            f"{name}_kid_fast_relative": kid_fast / kid - 1,
        }
    return found


def by_formula(options: ExtractorOptions) -> Extractor:
    """Inception with the weights that the tests' formula gives to its published names."""
    sys.path.insert(0, str(ROOT / "tests"))
    from golden import fill

    table = {name: torch.from_numpy(fill(name, shape)) for name, shape in published_shapes()}
    return inception_extractor(inception_from(table), options)


def published_shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the published file."""
    for name, module in Inception().named_modules():
        if isinstance(module, torch.nn.Conv2d):
            theirs = name[0].upper() + name[1:]
            yield f"{theirs}.conv.weight", tuple(module.weight.shape)
            for leaf in ("weight", "bias", "running_mean", "running_var"):
                yield f"{theirs}.bn.{leaf}", (module.out_channels,)
    yield "fc.weight", (inception.NUM_CLASSES, inception.POOL_WIDTH)
    yield "fc.bias", (inception.NUM_CLASSES,)


def tiles(split: str, count: int) -> np.ndarray:
    """(count, 64, 64, 3) uint8 Earth tiles of a split, spread over it."""
    found = [tile.pixels for tile in earth_tiles() if tile.split == split]
    return np.stack(list(islice(found, 0, None, len(found) // count))[:count])


def alternately(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, Timed]:
    """Medians of the clock's and the processor's seconds of every way, after one round to warm up."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for round_ in range(rounds + 1):
        for name, way in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            way()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if round_:
                times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: {"wall": statistics.median(w for w, _ in rows), "cpu": statistics.median(c for _, c in rows)}
        for name, rows in times.items()
    }


def shown(value: object) -> str:
    """A number short, anything else as it is."""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"{error.message}\n{error.hint}")
